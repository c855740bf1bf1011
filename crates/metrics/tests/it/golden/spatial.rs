use metrics::spatial::{
    Grid, SpatialMetrics, SpatialOptions, cds, distance_profile, evaluate, evaluate_images, lds,
    patch_mask, rmsc, srss,
};
use ndarray::{Array2, Array3, Axis};

use super::case::Case;

type Metric = fn(&SpatialMetrics) -> f64;

struct Input {
    case: Case,
    tokens: Array3<f32>,
    masks: Array2<bool>,
    grid: Grid,
}

impl Input {
    fn open(name: &str) -> Self {
        let case = Case::open(name);
        let side = |key: &str| case.config()[key].as_u64().unwrap() as usize;
        Self {
            tokens: case.cube("in.feats").mapv(|x| x as f32),
            masks: case.matrix("in.masks").mapv(|x| x != 0.0),
            grid: Grid {
                height: side("H"),
                width: side("W"),
            },
            case,
        }
    }

    fn options(&self, setting: &str) -> SpatialOptions {
        let setting = &self.case.config()["settings"][setting];
        let distance = |metric: &str, key: &str| setting[metric][key].as_u64().unwrap() as usize;
        SpatialOptions {
            lds_far_distance: distance("lds", "far_dist"),
            cds_max_distance: distance("cds", "dmax"),
            srss_near_distance: distance("srss", "d_pos"),
            srss_far_distance: distance("srss", "d_neg"),
        }
    }

    /// Compares all metrics in one setting; the names of its tensors end with `suffix`.
    fn check(&self, setting: &str, suffix: &str) {
        let options = self.options(setting);
        let tokens = self.tokens.view();
        let masks = Some(self.masks.view());
        let images = evaluate_images(tokens, self.grid, masks, &options).unwrap();
        let mean = evaluate(tokens, self.grid, masks, &options).unwrap();
        let metrics: [(&str, Metric); 3] = [
            ("lds", |image| image.lds),
            ("cds", |image| image.cds),
            ("srss", |image| image.srss.unwrap_or(f64::NAN)),
        ];
        for (name, metric) in metrics {
            // Only metrics_edge has a separate tolerance for one tensor: CDS of a single distance is 0.
            let tolerance = match (name, suffix) {
                ("cds", "_near") => self.case.tolerance("out.cds_near"),
                _ => self.case.tolerance(&format!("out.{name}*")),
            };
            let values: Vec<f64> = images.iter().map(metric).collect();
            self.case
                .check(&format!("out.{name}{suffix}"), &values, tolerance);
            let key = format!("out.{name}{suffix}_mean");
            self.case.check(&key, &[metric(&mean)], tolerance);
        }
        self.check_single(&images, &options);
    }

    fn check_rmsc(&self) {
        let tokens = self.tokens.view();
        let options = SpatialOptions::default();
        let images = evaluate_images(tokens, self.grid, None, &options).unwrap();
        let tolerance = self.case.tolerance("out.rmsc*");
        let values: Vec<f64> = images.iter().map(|image| image.rmsc).collect();
        let squares: Vec<f64> = values.iter().map(|x| x * x).collect();
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        self.case.check("out.rmsc", &values, tolerance);
        self.case.check("out.rmsc_sq", &squares, tolerance);
        self.case
            .check("out.rmsc_mean", &[mean(&values)], tolerance);
        self.case
            .check("out.rmsc_sq_mean", &[mean(&squares)], tolerance);
    }

    fn check_profile(&self) {
        let profiles = self.tokens.outer_iter().flat_map(|tokens| {
            let mut profile = distance_profile(tokens, self.grid).unwrap();
            profile.truncate(self.options("default").cds_max_distance);
            profile
        });
        let profiles: Vec<f64> = profiles.collect();
        let tolerance = self.case.tolerance("out.cds*");
        self.case.check("out.cds_profile", &profiles, tolerance);
    }

    /// Checks that the functions for one image return the same values as those for a batch.
    fn check_single(&self, images: &[SpatialMetrics], options: &SpatialOptions) {
        for (i, image) in images.iter().enumerate() {
            let tokens = self.tokens.index_axis(Axis(0), i);
            let mask = self.masks.row(i).to_vec();
            let (near, far) = (options.srss_near_distance, options.srss_far_distance);
            let single = SpatialMetrics {
                lds: lds(tokens, self.grid, options.lds_far_distance).unwrap(),
                cds: cds(tokens, self.grid, options.cds_max_distance).unwrap(),
                srss: srss(tokens, self.grid, &mask, near, far).unwrap(),
                rmsc: rmsc(tokens).unwrap(),
            };
            assert_eq!(single, *image);
        }
    }
}

fn check_case(name: &str, second_setting: &str) {
    let input = Input::open(name);
    input.check("default", "");
    input.check(second_setting, &format!("_{second_setting}"));
    input.check_rmsc();
    input.check_profile();
}

#[test]
fn metrics_of_white_noise_equal_upstream() {
    check_case("spatial/metrics_white", "alt");
}

#[test]
fn metrics_of_smooth_tokens_equal_upstream() {
    check_case("spatial/metrics_smooth", "alt");
}

#[test]
fn metrics_of_tokens_with_a_shared_mean_equal_upstream() {
    check_case("spatial/metrics_sharedmean", "alt");
}

#[test]
fn metrics_on_a_rectangular_grid_equal_upstream() {
    check_case("spatial/metrics_rect", "alt");
}

#[test]
fn metrics_of_zero_tokens_equal_tokens_and_odd_masks_equal_upstream() {
    check_case("spatial/metrics_edge", "near");
}

/// Opens a case whose tensors are test data of the crate `data`, which reads masks.
fn masks(name: &str) -> Case {
    let tensors = format!("../../../data/tests/data/{name}.safetensors");
    Case::with_tensors(&format!("spatial/{name}"), &tensors)
}

fn check_patch_masks(case: &Case, masks_key: &str) {
    let grid = Grid {
        height: 16,
        width: 16,
    };
    let pixels = case.cube(masks_key).mapv(|x| x as u8);
    let patches = case.matrix("out.patch_masks").mapv(|x| x != 0.0);
    let positive = case.vector("out.pos_counts");
    for (i, pixels) in pixels.outer_iter().enumerate() {
        let mask = patch_mask(pixels, grid).unwrap();
        assert_eq!(mask, patches.row(i).to_vec(), "mask {i}");
        let foreground = mask.iter().filter(|&&patch| patch).count();
        assert_eq!(foreground as f64, positive[i], "mask {i}");
    }
}

#[test]
fn patch_masks_equal_upstream() {
    check_patch_masks(&masks("mask_filter"), "in.masks_raw");
}

#[test]
fn patch_masks_of_resized_files_equal_upstream() {
    check_patch_masks(&masks("mask_resize"), "out.resized");
}
