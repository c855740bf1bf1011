//! Switches of the whole process: a program of its own, since other tests run beside each other.

use torch_ext::device::{Float32, deterministic, set_deterministic, set_tf32, tf32};

#[test]
fn switches_are_read_back_and_float32_is_undone() {
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
