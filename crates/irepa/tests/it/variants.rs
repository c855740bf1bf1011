//! Training variants: files that override the base, each with the same recipes.

use std::fs;

use crate::common::{Playground, repository};
use encoders::Registry;
use metrics::figures::Figure;
use sweep::config_file;
use sweep::experiment::{DeviceKind, Plan};

/// SiT, MeanFlow, JiT and REPA-E, without alignment and with iREPA.
fn playground() -> Playground {
    let place = Playground::new();
    place.edit(
        "experiment.toml",
        "recipes = \"recipes\"",
        "recipes = \"recipes\"\nvariants = \"variants\"",
    );
    place.edit(
        "experiment.toml",
        "model = [\"SiT-XS/4\"]",
        "variant = [\"sit\", \"meanflow\", \"jit\", \"repa-e\"]",
    );
    place.edit("experiment.toml", ", \"good\"]", "]");
    place.write(
        "variants/meanflow.toml",
        "[objective]\nkind = \"meanflow\"\ncfg_omega = 0.2\ncfg_kappa = 0.9\n\
         [sample]\nsampler = { method = \"euler\", num_steps = 1 }\n",
    );
    place.write(
        "variants/jit.toml",
        "[model]\nname = \"JiT-XS/4\"\n[objective]\nkind = \"x-prediction\"\n\
         [train]\nsecond_ema_decay = 0.5\n",
    );
    place.write(
        "variants/repa-e.toml",
        "[model]\nname = \"SiT-XS/2\"\n[model.autoencoder]\nkind = \"kl\"\ntrain = true\n\
         layout = { base_channels = 8, channel_multipliers = [1, 1], num_res_blocks = 1, norm_groups = 4 }\n\
         [objective]\nkind = \"repa-e\"\ndiscriminator_channels = 4\ndiscriminator_layers = 1\n\
         [objective.loss]\nperceptual_weight = 0.0\n",
    );
    place.write(
        "recipes/jit/irepa.toml",
        "base = \"../irepa.toml\"\n[alignment]\nlosses = [{ kind = \"cosine\", coefficient = 0.25 }]\n",
    );
    place
}

#[test]
fn every_variant_trains_with_every_recipe_and_draws_samples() {
    let place = playground();
    place.sweep(&[]).expect(0, &["8 done, 0 failed"]);
    let rows = report::results::read_csv(&place.path("runs/small/results.csv")).unwrap();
    let found: Vec<(&str, &str, &str)> = rows
        .iter()
        .map(|row| (&*row.cell, &*row.variant, &*row.model))
        .collect();
    let aligned = "irepa.hog-vit-g4_d128.s0";
    let ids: Vec<String> = ["sit-xs4", "sit-xs4.meanflow", "jit-xs4", "sit-xs2.repa-e"]
        .iter()
        .flat_map(|name| [format!("{name}.none.s0"), format!("{name}.{aligned}")])
        .collect();
    assert_eq!(
        found,
        [
            (&*ids[0], "sit", "SiT-XS/4"),
            (&*ids[1], "sit", "SiT-XS/4"),
            (&*ids[2], "meanflow", "SiT-XS/4"),
            (&*ids[3], "meanflow", "SiT-XS/4"),
            (&*ids[4], "jit", "JiT-XS/4"),
            (&*ids[5], "jit", "JiT-XS/4"),
            (&*ids[6], "repa-e", "SiT-XS/2"),
            (&*ids[7], "repa-e", "SiT-XS/2"),
        ]
    );
    for row in &rows {
        for figure in [Figure::DenoisingLoss, Figure::Fd] {
            assert!(row.get(figure) > Some(0.0), "{row:?}");
        }
        let cell = format!("runs/small/cells/{}", row.cell);
        assert!(place.path(&cell).join("samples/step-0000006.png").is_file());
        let second = place
            .path(&cell)
            .join("checkpoints/step-0000006/ema2.safetensors");
        assert_eq!(second.is_file(), row.variant == "jit");
        let vae = second.with_file_name("vae.safetensors");
        assert_eq!(vae.is_file(), row.variant == "repa-e");
        // A variant's own recipe takes precedence over the general one.
        let config = place.read(&format!("{cell}/config.toml"));
        let own = row.variant == "jit" && row.recipe == "irepa";
        assert_eq!(config.contains("coefficient = 0.25"), own, "{}", row.cell);
    }
    place.sweep(&[]).expect(0, &["0 to run, 8 done"]);
}

#[test]
fn unknown_and_invalid_variants_are_refused() {
    let place = playground();
    place.edit("experiment.toml", "\"meanflow\"", "\"meanflw\"");
    place
        .sweep(&[])
        .expect(2, &["grid.variant", "meanflw", "did you mean `meanflow`?"]);
    let place = playground();
    place
        .sweep(&["--set", "sample.sampler.method=\"euler-maruyama\""])
        .expect(
            2,
            &["sit-xs4.meanflow.none.s0", "sample.sampler.method", "SDE"],
        );
    let place = playground();
    place.edit("variants/jit.toml", "JiT-XS/4", "SiT-XS/4");
    place
        .sweep(&[])
        .expect(2, &["objective.kind", "x-prediction", "SiT-XS/4"]);
    let place = playground();
    place.edit("variants/meanflow.toml", "cfg_kappa", "cfg_kapa");
    place.sweep(&[]).expect(2, &["meanflow.toml", "cfg_kapa"]);
    let place = playground();
    place.edit(
        "variants/repa-e.toml",
        "train = true",
        "train = false\nweights = \"vae.safetensors\"",
    );
    place.sweep(&[]).expect(
        2,
        &[
            "sit-xs2.repa-e.none.s0",
            "model.autoencoder",
            "train = true",
        ],
    );
    assert!(!place.path("runs").exists());
}

#[test]
fn repa_e_without_its_files_is_skipped_and_the_others_run() {
    let place = playground();
    place.edit(
        "variants/repa-e.toml",
        "perceptual_weight = 0.0",
        "perceptual_weight = 1.0",
    );
    place.edit(
        "variants/repa-e.toml",
        "[objective]\n",
        "[objective]\nlpips = \"lpips.safetensors\"\n",
    );
    place
        .sweep(&["--only", "*.none.*"])
        .expect(0, &["3 done, 0 failed", "2 skipped"]);
    let rows = report::results::read_csv(&place.path("runs/small/results.csv")).unwrap();
    let skipped = rows.iter().find(|row| row.variant == "repa-e").unwrap();
    assert!(
        skipped.reason.contains("variants/lpips.safetensors"),
        "{}",
        skipped.reason
    );
    assert!(
        skipped.reason.contains("convert_lpips.py"),
        "{}",
        skipped.reason
    );
}

#[test]
fn the_configurations_and_experiments_of_the_project_are_valid() {
    let files = |folder: &str| -> Vec<_> {
        fs::read_dir(repository().join(folder))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| {
                path.extension()
                    .is_some_and(|extension| extension == "toml")
            })
            .collect()
    };
    let configurations = files("configs");
    assert!(configurations.len() >= 3);
    for path in configurations {
        config_file::load(&path, &[]).unwrap();
    }
    let registry = Registry::new(&[repository().join("experiments/encoders")]);
    let experiments = files("experiments");
    assert!(experiments.len() >= 3);
    for path in experiments {
        for device in [DeviceKind::Cpu, DeviceKind::Cuda] {
            let plan = Plan::read(&path, device, &registry, &[]).unwrap();
            assert!(plan.cells.len() > 1, "{}", path.display());
        }
    }
}
