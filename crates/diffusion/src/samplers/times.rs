//! Times between which a sampler steps.

/// `count` equally spaced numbers from `start` to `end`, computed from the nearer end as
/// `torch.linspace` does. Accumulated steps could miss an end of the guidance interval by rounding.
pub(super) fn linspace(start: f64, end: f64, count: usize) -> Vec<f64> {
    if count == 1 {
        return vec![start];
    }
    let step = (end - start) / count.saturating_sub(1) as f64;
    (0..count)
        .map(|index| {
            if index < count / 2 {
                start + step * index as f64
            } else {
                end - step * (count - 1 - index) as f64
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind, Tensor};

    use super::linspace;

    #[test]
    fn linspace_agrees_with_torch_to_one_rounding() {
        for count in 1..300 {
            for end in [0.0, 0.04] {
                let torch = Tensor::linspace(1.0, end, count, (Kind::Double, Device::Cpu));
                let torch = Vec::<f64>::try_from(torch).unwrap();
                let ours = linspace(1.0, end, count as usize);
                assert_eq!(ours.len(), torch.len());
                for (ours, torch) in ours.iter().zip(&torch) {
                    assert!(
                        (ours - torch).abs() <= f64::EPSILON / 2.0,
                        "{count}: {ours} {torch}"
                    );
                }
            }
        }
    }

    #[test]
    fn linspace_meets_both_ends() {
        for count in 2..300 {
            let times = linspace(1.0, 0.04, count);
            assert_eq!((times[0], times[count - 1]), (1.0, 0.04));
        }
    }
}
