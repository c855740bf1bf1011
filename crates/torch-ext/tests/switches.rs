//! Process-wide settings. They have a test program of their own, since other tests run concurrently.

use torch_ext::device::{Float32, deterministic, set_deterministic, set_tf32, tf32};

#[test]
fn settings_are_readable_and_float32_restores_them() {
    for enabled in [true, false] {
        set_tf32(enabled).unwrap();
        assert_eq!(tf32().unwrap(), (enabled, enabled));
        {
            let _float32 = Float32::enter().unwrap();
            assert_eq!(tf32().unwrap(), (false, false));
        }
        assert_eq!(tf32().unwrap(), (enabled, enabled));
        set_deterministic(enabled).unwrap();
        assert_eq!(deterministic().unwrap(), enabled);
    }
}
