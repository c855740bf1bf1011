//! Bad input is reported in one paragraph that names the file, the key and the remedy, and leaves no partial
//! output.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use crate::common::{BASE, Playground, repository};

/// Asserts that the sweep is refused with `words` in one paragraph, and that it creates no run folder.
fn refused(place: &Playground, words: &[&str]) {
    let outcome = place.sweep(&[]).expect(2, words);
    assert!(
        !place.path("runs").exists(),
        "a refused sweep left a run folder"
    );
    let paragraphs = outcome.stderr.trim().split("\n\n").count();
    assert_eq!(paragraphs, 1, "{}", outcome.stderr);
}

#[test]
fn an_unknown_key_is_reported_with_file_line_and_nearest_key() {
    let place = Playground::new();
    place.edit("base.toml", "batch_size = 8", "batch_sise = 8");
    refused(
        &place,
        &[
            "base.toml",
            "batch_sise",
            "line",
            "Did you mean `batch_size`?",
        ],
    );
    let place = Playground::new();
    place.edit("experiment.toml", "[grid]", "[gird]");
    refused(&place, &["experiment.toml", "gird"]);
    let place = Playground::new();
    place.edit("recipes/irepa.toml", "kernel", "kernal");
    refused(&place, &["irepa.toml", "kernal"]);
}

#[test]
fn a_wrong_type_or_value_is_reported_with_its_key() {
    let place = Playground::new();
    place.edit("base.toml", "steps = 6", "steps = \"six\"");
    refused(&place, &["base.toml", "steps", "invalid type"]);
    let place = Playground::new();
    place.edit("base.toml", "ema_decay = 0.9", "ema_decay = 9.0");
    refused(&place, &["train.ema_decay", "9", "0 to 1"]);
    let place = Playground::new();
    place.edit("recipes/irepa.toml", "kernel = 3", "kernel = 4");
    refused(&place, &["irepa.toml", "kernel"]);
    let place = Playground::new();
    place.edit("base.toml", "[train]", "[train");
    refused(&place, &["base.toml", "line"]);
}

#[test]
fn an_unknown_name_is_reported_with_the_nearest_known_name() {
    let place = Playground::new();
    place.edit("experiment.toml", "\"good\"]", "\"dinov2-vitb\"]");
    refused(&place, &["grid.encoder", "dinov2-vitb", "dinov2-vit-b"]);
    let place = Playground::new();
    place.edit("experiment.toml", "SiT-XS/4", "SiT-XS/3");
    refused(&place, &["SiT-XS/3", "SiT-XS/"]);
    let place = Playground::new();
    place.edit("experiment.toml", "\"irepa\"]", "\"irepo\"]");
    refused(&place, &["grid.recipe", "irepo", "did you mean `irepa`?"]);
    let place = Playground::new();
    place.edit("base.toml", "good_patch_only", "good_patch");
    refused(&place, &["evaluate.fd_encoder", "good_patch_only"]);
}

#[test]
fn settings_of_the_command_line_are_checked_too() {
    let place = Playground::new();
    place
        .sweep(&["--set", "train.stepz=3"])
        .expect(2, &["stepz", "Did you mean `steps`?"]);
    place
        .sweep(&["--set", "train.steps"])
        .expect(2, &["key=value"]);
    place
        .sweep(&["--only", "nothing*"])
        .expect(2, &["--only", "no cell matches"]);
    place.sweep(&["--shard", "3/2"]).expect(2, &["I/N"]);
    assert!(!place.path("runs").exists());
}

#[test]
fn missing_files_are_reported_with_the_file_that_names_them() {
    let place = Playground::new();
    fs::remove_file(place.path("base.toml")).unwrap();
    refused(&place, &["base.toml", "named by `base` in experiment.toml"]);
    let place = Playground::new();
    for (key, variant) in [("recipes", "sit"), ("variants", "jit")] {
        let place = Playground::new();
        place.edit(
            "experiment.toml",
            "recipes = \"recipes\"",
            &format!("{key} = \"elsewhere\""),
        );
        place.edit(
            "experiment.toml",
            "[grid]",
            &format!("[grid]\nvariant = [\"{variant}\"]"),
        );
        refused(
            &place,
            &[&format!("`{key}`"), "there is no folder elsewhere"],
        );
    }
    place.edit("base.toml", "emoji64", "emoji65");
    refused(&place, &["data.path", "emoji65"]);
    Playground::new()
        .run(&["sweep", "nowhere.toml"])
        .expect(2, &["nowhere.toml"]);
    let place = Playground::new();
    place.write("base.toml", "base = \"base.toml\"\n");
    refused(&place, &["base.toml", "circular"]);
}

#[test]
fn errors_of_the_toml_parser_are_printed_once() {
    for (file, old, new) in [
        ("experiment.toml", "seed = [0]", "seed = [\"a\"]"),
        ("experiment.toml", "name = \"small\"", ""),
        ("base.toml", "steps = 6", "steps = \"x\""),
        ("base.toml", "[train]", "[train]\n[train]"),
    ] {
        let place = Playground::new();
        place.edit(file, old, new);
        let outcome = place.sweep(&[]).expect(2, &[file, "line"]);
        let found = outcome.stderr.matches("TOML parse error").count();
        assert_eq!(found, 1, "{}", outcome.stderr);
    }
}

#[test]
fn invalid_settings_are_refused_before_anything_is_written() {
    let place = Playground::new();
    for (setting, words) in [
        (
            "data.resolution=18",
            ["`data.resolution`", "a multiple of 4"],
        ),
        ("alignment.losses=[]", ["`alignment.losses`", "empty"]),
        (
            "alignment.losses=[{ kind = \"cosine\", coefficient = nan }]",
            ["`alignment.losses`", "NaN"],
        ),
        (
            "alignment.head={ kind = \"mlp\", width = 0 }",
            ["`alignment.head.width`", "at least 1"],
        ),
        (
            "alignment.spatial_norm={ method = \"zscore\", alpha = inf }",
            ["`alignment.spatial_norm`", "alpha"],
        ),
        (
            "alignment.spatial_norm={ method = \"zscore\", eps = 0.0 }",
            ["`alignment.spatial_norm`", "eps"],
        ),
        (
            "sample.sampler.num_steps=0",
            ["`sample.sampler.num_steps`", "at least 1"],
        ),
        (
            "data.latent_cache=latents",
            ["`data.latent_cache`", "identity"],
        ),
    ] {
        place
            .sweep(&["--dry-run", "--set", setting])
            .expect(2, &[&["experiment.toml"], &words[..]].concat());
        place
            .run(&["train", "base.toml", "--out", "runs/one", "--set", setting])
            .expect(2, &[&["base.toml"], &words[..]].concat());
    }
    assert!(!place.path("runs").exists());
}

#[test]
fn an_aligned_recipe_without_an_encoder_is_refused() {
    let place = Playground::new();
    place.edit(
        "experiment.toml",
        "encoder = [\"hog-vit-g4_d128\", \"good\"]",
        "",
    );
    refused(&place, &["`grid.encoder`", "irepa"]);
    place.edit("experiment.toml", ", \"irepa\"]", "]");
    place.sweep(&["--dry-run"]).expect(0, &["1 cells"]);
}

#[test]
fn settings_without_effect_cause_a_warning() {
    let place = Playground::new();
    let train = |out: &str, more: &[&str]| {
        let mut all = vec!["train", "base.toml", "--device", "cpu", "--out", out];
        for setting in [
            "train.steps=1",
            "sample.grid=0",
            "sample.count=0",
            "evaluate.fd_encoder=\"\"",
            "evaluate.spatial_images=0",
        ]
        .iter()
        .chain(more)
        {
            all.extend(["--set", setting]);
        }
        place.run(&all).expect(0, &[])
    };
    let cached = "data.token_cache=nowhere";
    train("a", &["alignment.encoder=good", cached]).expect(
        0,
        &["WARN", "`data.token_cache` is nowhere", "no such folder"],
    );
    fs::create_dir(place.path("nowhere")).unwrap();
    train("b", &["alignment.encoder=good", cached]).expect(
        0,
        &[
            "`data.token_cache` has no cache of good",
            "prepare features",
        ],
    );
    let quiet = |outcome: crate::common::Outcome| {
        assert!(!outcome.stderr.contains("WARN"), "{}", outcome.stderr);
    };
    quiet(train("c", &[cached]));
    quiet(train("d", &["alignment.encoder=good"]));

    place.write(
        "base.toml",
        &format!(
            "{}\n[alignment]\nhead = {{ kind = \"linear\" }}\n",
            place.read("base.toml")
        ),
    );
    train("e", &[]).expect(0, &["WARN", "alignment.head", "alignment.encoder"]);
    quiet(train("f", &["alignment.encoder=none"]));
}

#[test]
fn zero_counts_and_missing_output_folders_are_refused_at_once() {
    let place = Playground::new();
    for (arguments, words) in [
        (
            &["encoders", "check", "hog", "--batch", "0"][..],
            ["--batch", "0"],
        ),
        (
            &["encoders", "check", "hog", "--resolution", "0"],
            ["--resolution", "0"],
        ),
        (
            &["encoders", "inspect", "hog", "--resolution", "0"],
            ["--resolution", "0"],
        ),
        (&["metrics", "hog", "--images", "0"], ["--images", "0"]),
        (
            &["metrics", "hog", "--rank", "--json", "nodir/x.json"],
            ["--json nodir/x.json", "no folder nodir"],
        ),
        (
            &["evaluate", "a", "--reference", "b", "--out", "nodir/x.json"],
            ["--out nodir/x.json", "no folder nodir"],
        ),
        (
            &["sample", "run", "--grid", "grid.jpg"],
            ["--grid grid.jpg", ".png"],
        ),
        (
            &["sample", "run", "--grid", "nodir/grid.png"],
            ["--grid nodir/grid.png", "no folder nodir"],
        ),
    ] {
        let outcome = place.run(arguments).expect(2, &words);
        assert_eq!(outcome.stdout, "", "{arguments:?}");
    }
}

#[test]
fn a_truncated_arrow_file_is_named() {
    let place = Playground::new();
    let source = repository().join("experiments/data/emoji64/val");
    let copy = place.path("data/val");
    fs::create_dir_all(&copy).unwrap();
    for entry in fs::read_dir(source).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), copy.join(entry.file_name())).unwrap();
    }
    let arrow = copy.join("data-00000-of-00001.arrow");
    let bytes = fs::read(&arrow).unwrap();
    fs::write(&arrow, &bytes[..bytes.len() / 2]).unwrap();
    let outcome = place.sweep(&["--set", "data.path=data"]);
    outcome.expect(2, &["data-00000-of-00001.arrow", "data.path"]);
    assert!(!place.path("runs").exists());
}

/// Writes class folders with 24 PNG files, of which the first `corrupt` are not images.
fn image_folder(folder: &Path, corrupt: usize) {
    for index in 0..24_usize {
        let class = folder.join(["cats", "dogs"][index % 2]);
        fs::create_dir_all(&class).unwrap();
        let path = class.join(format!("{index:02}.png"));
        if index < corrupt {
            fs::write(path, "not an image").unwrap();
            continue;
        }
        let shade = (index * 10) as u8;
        let image =
            image::RgbImage::from_fn(20, 24, |x, y| image::Rgb([shade, x as u8 * 9, y as u8 * 9]));
        image.save(path).unwrap();
    }
}

#[test]
fn corrupt_images_are_skipped_up_to_the_configured_share() {
    let place = Playground::new();
    image_folder(&place.path("images"), 2);
    let arguments = [
        "--set",
        "data.path=images",
        "--set",
        "data.split=",
        "--set",
        "evaluate.fd_encoder=",
        "--set",
        "evaluate.spatial_images=0",
        "--only",
        "*.none.*",
    ];
    let share = |share: &str| {
        let mut all = arguments.to_vec();
        let setting = format!("data.max_corrupt_share={share}");
        all.extend(["--set", &setting]);
        place.sweep(&all)
    };
    share("0.01").expect(1, &["failed", "corrupt"]);
    let outcome = share("0.5").expect(0, &["1 done"]);
    assert!(outcome.stderr.contains("WARN"), "{}", outcome.stderr);
    assert!(
        !outcome.stderr.contains('\u{1b}'),
        "colours in a pipe: {}",
        outcome.stderr
    );
}

#[test]
fn cuda_without_cuda_is_refused() {
    let place = Playground::new();
    let sweep = |device| {
        let mut command = place.command(&["sweep", "experiment.toml", "--device", device]);
        // Hides the CUDA devices of the machine.
        crate::common::Outcome::of(command.env("CUDA_VISIBLE_DEVICES", "").output().unwrap())
    };
    sweep("cuda").expect(2, &["--device cuda", "CUDA"]);
    sweep("gpu").expect(2, &["auto, cpu, cuda or cuda:N"]);
    assert!(!place.path("runs").exists());
}

#[test]
fn an_output_folder_that_cannot_be_created_is_refused() {
    let place = Playground::new();
    place.write("file", "in the way");
    place
        .sweep(&["--out", "file"])
        .expect(2, &["file/small", "--out"]);
    assert_eq!(place.read("file"), "in the way");
}

#[test]
fn a_full_disk_fails_the_cell_and_leaves_no_partial_checkpoint() {
    let place = Playground::new();
    // Limits files to 256 KiB: enough for logs and results, too little for checkpoints.
    let program = env!("CARGO_BIN_EXE_irepa");
    let script = format!(
        "trap '' XFSZ; ulimit -f 256; exec '{program}' sweep experiment.toml --device cpu --only '*.none.*'"
    );
    let output = std::process::Command::new("bash")
        .args(["-c", &script])
        .current_dir(place.path(""))
        .env("IREPA_ENCODERS", place.path("encoders"))
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("safetensors"), "{stderr}");
    let checkpoints = place.path("runs/small/cells/sit-xs4.none.s0/checkpoints");
    assert_eq!(
        fs::read_dir(checkpoints).unwrap().count(),
        0,
        "a partial checkpoint was left"
    );
    place.sweep(&["--only", "*.none.*"]).expect(0, &["1 done"]);
}

/// All commands without subcommands, as listed by the program's help.
fn leaf_commands(place: &Playground, parents: &[String]) -> Vec<Vec<String>> {
    let mut arguments: Vec<&str> = parents.iter().map(String::as_str).collect();
    arguments.push("--help");
    let help = place.run(&arguments).expect(0, &[]).stdout;
    let listed = help.split("\nCommands:\n").nth(1).unwrap_or_default();
    let names: Vec<String> = listed
        .lines()
        .take_while(|line| !line.is_empty())
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .map(str::to_owned)
        .collect();
    if names.is_empty() {
        return vec![parents.to_vec()];
    }
    names
        .into_iter()
        .flat_map(|name| leaf_commands(place, &[parents, &[name]].concat()))
        .collect()
}

#[test]
fn every_command_has_help_with_an_example() {
    let place = Playground::new();
    let commands = leaf_commands(&place, &[]);
    for known in [
        &["sweep"][..],
        &["encoders", "check"],
        &["prepare", "latents"],
    ] {
        assert!(commands.iter().any(|command| command == known), "{known:?}");
    }
    for command in commands {
        let words: Vec<&str> = command.iter().map(String::as_str).collect();
        let help = place.run(&[&words[..], &["--help"]].concat());
        let help = help.expect(0, &[]).stdout;
        let example = format!("runner {}", command.join(" "));
        let shown = help.split("Example").nth(1);
        assert!(
            shown.is_some_and(|shown| shown.contains(&example)),
            "{command:?} has no example: {help}"
        );
    }
    place.run(&["--help"]).expect(0, &["IREPA_LOG", "NO_COLOR"]);
    place.run(&["swep"]).expect(2, &["sweep"]);
    place
        .run(&["report", "nowhere"])
        .expect(1, &["results.csv"]);
}

/// Path of an invalid data set in the tests of the crate `data`.
fn data_case(name: &str) -> String {
    let cases = repository().join("crates/data/tests/data/cases");
    let path = cases.join(name).canonicalize().unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn an_unusable_data_set_is_refused_by_every_command() {
    let place = Playground::new();
    let emoji = repository().join("experiments/data/emoji64/val");
    let emoji = emoji.to_str().unwrap();
    for (case, words) in [
        ("8-empty-split/no-file/val", ["this split has no samples"]),
        ("8-empty-split/one-shard/val", ["this split has no samples"]),
        ("7-path-only/ds", ["images that are stored elsewhere"]),
        ("9-labels/neg", ["sample 0 is -1"]),
    ] {
        let data = data_case(case);
        let base = BASE.replace("DATA", &data);
        place.write(
            "base.toml",
            &base.replace("split = \"val\"", "split = \"\""),
        );
        let commands = [
            &["sweep", "experiment.toml", "--device", "cpu"][..],
            &[
                "train",
                "base.toml",
                "--set",
                "alignment.encoder=none",
                "--device",
                "cpu",
            ],
            &[
                "prepare",
                "features",
                "base.toml",
                "--encoder",
                "good",
                "--device",
                "cpu",
            ],
            &[
                "metrics", "good", "--data", &data, "--split", "", "--device", "cpu",
            ],
            &[
                "evaluate",
                emoji,
                "--reference",
                &data,
                "--resolution",
                "16",
                "--encoder",
                "good_patch_only",
                "--device",
                "cpu",
            ],
        ];
        for command in commands {
            // `evaluate` does not read labels.
            if command[0] == "evaluate" && case == "9-labels/neg" {
                continue;
            }
            place.run(command).expect(2, &words).expect(2, &[&data]);
        }
    }
    assert!(!place.path("runs").exists());
}

#[test]
fn an_empty_reference_split_is_refused_before_training() {
    let place = Playground::new();
    let emoji = repository().join("experiments/data/emoji64/val");
    fs::create_dir(place.path("data")).unwrap();
    symlink(emoji.canonicalize().unwrap(), place.path("data/train")).unwrap();
    symlink(
        data_case("8-empty-split/one-shard/val"),
        place.path("data/val"),
    )
    .unwrap();
    let data = place.path("data");
    let base = BASE.replace("DATA", data.to_str().unwrap());
    let splits = "split = \"train\"\nreference_split = \"val\"";
    place.write("base.toml", &base.replace("split = \"val\"", splits));
    refused(&place, &["data/val: this split has no samples"]);
}

/// A shell sets the limit, so that it applies to the program only.
#[test]
fn a_data_set_with_more_files_than_may_be_open_is_read() {
    let place = Playground::new();
    let emoji = repository().join("experiments/data/emoji64/val");
    let emoji = emoji.canonicalize().unwrap();
    let info = fs::read_to_string(emoji.join("dataset_info.json")).unwrap();
    place.write("shards/dataset_info.json", &info);
    let names: Vec<String> = (0..300)
        .map(|i| format!("data-{i:05}-of-00300.arrow"))
        .collect();
    for name in &names {
        let arrow = emoji.join("data-00000-of-00001.arrow");
        symlink(arrow, place.path("shards").join(name)).unwrap();
    }
    let files: Vec<String> = names
        .iter()
        .map(|name| format!("{{\"filename\": \"{name}\"}}"))
        .collect();
    let state = format!("{{\"_data_files\": [{}]}}", files.join(", "));
    place.write("shards/state.json", &state);
    let limited = |arguments: &[&str]| {
        let inner = place.command(arguments);
        let mut shell = std::process::Command::new("sh");
        shell.args(["-c", "ulimit -n 128; exec \"$0\" \"$@\""]);
        shell.arg(inner.get_program()).args(inner.get_args());
        shell
            .current_dir(place.path(""))
            .env("IREPA_ENCODERS", place.path("encoders"));
        crate::common::Outcome::of(shell.output().unwrap())
    };
    let metrics = [
        "metrics", "good", "--data", "shards", "--split", "", "--device", "cpu",
    ];
    let more = [
        "--resolution",
        "16",
        "--images",
        "310",
        "--probe",
        "40",
        "--probe-split",
        "",
    ];
    limited(&[&metrics[..], &more[..]].concat()).expect(0, &["good,"]);
}

#[test]
fn a_configuration_in_another_format_is_reported_as_such() {
    let place = Playground::new();
    let case = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/cases/16-utf16");
    for file in ["u16le.toml", "u16nobom.toml"] {
        let path = format!("{case}/{file}");
        place
            .run(&["train", &path, "--device", "cpu"])
            .expect(2, &[file, "UTF-16", "UTF-8"]);
    }
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7\n";
    place.write("base.toml", pointer);
    refused(&place, &["base.toml", "Git LFS pointer", "git lfs pull"]);
    fs::write(place.path("base.toml"), b"# caf\xe9\n").unwrap();
    refused(&place, &["base.toml", "not text in UTF-8"]);
}

#[test]
fn a_set_without_installed_encoders_is_refused() {
    let place = Playground::new();
    for command in [&["encoders", "check"][..], &["metrics"]] {
        place
            .run(&[command, &["paper27"]].concat())
            .expect(2, &["not installed: dinov2-vit-b", "encoders list"]);
    }
}
