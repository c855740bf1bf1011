//! Reads configurations: layers of TOML over the defaults.
//!
//! A file may name a `base` file, which it overrides. Recipes, the `[set]` tables of an experiment and `--set key=value`
//! override both. A path is relative to the file that names it. Every file is also checked on its own, so that an error
//! names the file and the line; the merged table is checked again.

mod error;
mod layers;
mod path;
mod settings;

use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::{Spanned, Table, Value};
use training::{Config, ConfigPath};

use error::MAX_DEPTH;
use layers::replace;

pub use error::ConfigError;
pub(crate) use error::nearest;
pub use layers::Layers;
pub(crate) use path::{folder_of, tidy};
pub use settings::apply_settings;
pub(crate) use settings::leaves;

/// Reads a configuration file and its chain of `base` files, without the defaults.
///
/// # Errors
/// A file is missing or is not a valid configuration; the chain is too long.
pub fn read_layers(path: &Path) -> Result<Layers, ConfigError> {
    read_layers_named_by(path, None)
}

/// As [`read_layers`]; `from` is the key and file that name `path`, for error messages.
pub(crate) fn read_layers_named_by(
    path: &Path,
    mut from: Option<String>,
) -> Result<Layers, ConfigError> {
    let mut layers = Vec::new();
    let mut next = Some(path.to_owned());
    while let Some(path) = next {
        if layers.len() == MAX_DEPTH {
            return Err(ConfigError::BaseChain(path));
        }
        let text = read(&path, from)?;
        let (base, text) = take_base(&path, text)?;
        let _checked: Config = parse(&path, &text)?;
        let table: Table = parse(&path, &text)?;
        layers.push(Layers::new(table, folder_of(&path)));
        next = base.map(|base| tidy(&folder_of(&path).join(base)));
        from = Some(format!("`base` in {}", path.display()));
    }
    let mut merged = Layers::default();
    for layer in layers.into_iter().rev() {
        merged.merge(layer);
    }
    Ok(merged)
}

/// Takes the key `base` from the text of a configuration file: another file whose settings this one overrides. The
/// returned text has spaces in its place, so that errors in other keys have the right line and column.
fn take_base(path: &Path, mut text: String) -> Result<(Option<PathBuf>, String), ConfigError> {
    #[derive(Deserialize)]
    struct WithBase {
        base: Option<Spanned<PathBuf>>,
    }
    let Some(base) = parse::<WithBase>(path, &text)?.base else {
        return Ok((None, text));
    };
    let end = base.span().end;
    let start = text[..base.span().start].rfind('\n').map_or(0, |at| at + 1);
    let blank = text[start..end].replace(|c| c != '\n', " ");
    text.replace_range(start..end, &blank);
    Ok((Some(base.into_inner()), text))
}

/// Reads a text file.
pub(crate) fn read(path: &Path, from: Option<String>) -> Result<String, ConfigError> {
    files::read_text(path).map_err(|source| ConfigError::Read {
        path: path.to_owned(),
        from,
        source,
    })
}

/// Parses the text of a TOML file into `T`. Errors have the file, line and key.
pub(crate) fn parse<T: serde::de::DeserializeOwned>(
    path: &Path,
    text: &str,
) -> Result<T, ConfigError> {
    toml::from_str(text).map_err(|source| ConfigError::Toml {
        path: path.to_owned(),
        source: Box::new(source),
    })
}

/// The configuration as the text of a file. Its paths are absolute, so that the file can be in any folder.
///
/// # Errors
/// TOML cannot represent a value.
pub fn to_file(config: &Config) -> Result<String, toml::ser::Error> {
    let mut table = Table::try_from(config)?;
    for (key, path) in config.paths() {
        // `absolute` fails if there is no working directory; then the path stays relative.
        if let (Ok(path), false) = (std::path::absolute(&*path), path.is_empty()) {
            replace(&mut table, &key, ConfigPath::from(path).to_text());
        }
    }
    toml::to_string(&table)
}

/// Converts merged layers to a configuration and checks it. `origin` names what is resolved, for error messages.
///
/// # Errors
/// A key is unknown, or a value has the wrong type or is out of range.
pub fn resolve(layers: Layers, origin: &str) -> Result<Config, ConfigError> {
    resolve_with(layers, origin, |_| {})
}

/// As [`resolve`]; `change` modifies the configuration before it is checked.
fn resolve_with(
    layers: Layers,
    origin: &str,
    change: impl FnOnce(&mut Config),
) -> Result<Config, ConfigError> {
    let parsed = |table: Table| {
        Value::Table(table)
            .try_into::<Config>()
            .map_err(|error| ConfigError::Merged {
                origin: origin.to_owned(),
                message: error.to_string().trim_end().to_owned(),
            })
    };
    let as_written = parsed(layers.table().clone())?;
    let mut config = parsed(layers.with_resolved_paths(&as_written))?;
    change(&mut config);
    config.validate().map_err(|source| ConfigError::Invalid {
        origin: origin.to_owned(),
        source,
    })?;
    Ok(config)
}

/// Logs a warning if alignment settings have no effect because no encoder is named. An explicit encoder `none` causes no
/// warning, because it is how a baseline is written.
fn warn_of_unused_alignment(table: &Table, path: &Path) {
    let Some(Value::Table(alignment)) = table.get("alignment") else {
        return;
    };
    if alignment.contains_key("encoder") {
        return;
    }
    let unused: Vec<String> = ["head", "losses", "spatial_norm"]
        .into_iter()
        .filter(|key| alignment.contains_key(*key))
        .map(|key| format!("alignment.{key}"))
        .collect();
    if !unused.is_empty() {
        tracing::warn!(
            "{}: without alignment.encoder, these settings have no effect: {}; name an encoder, or \"none\"",
            path.display(),
            unused.join(", ")
        );
    }
}

/// Reads `path`, applies `--set` settings, and checks the result.
///
/// # Errors
/// As [`read_layers`], [`apply_settings`] and [`resolve`].
pub fn load(path: &Path, settings: &[String]) -> Result<Config, ConfigError> {
    load_with(path, settings, |_| {})
}

/// As [`load`]; `change`, such as the flags of a command, modifies the configuration before it is checked.
///
/// # Errors
/// As [`load`].
pub fn load_with(
    path: &Path,
    settings: &[String],
    change: impl FnOnce(&mut Config),
) -> Result<Config, ConfigError> {
    let mut layers = read_layers(path)?;
    apply_settings(&mut layers, settings)?;
    warn_of_unused_alignment(layers.table(), path);
    let origin = if settings.is_empty() {
        path.display().to_string()
    } else {
        format!("{} with --set {}", path.display(), settings.join(" --set "))
    };
    resolve_with(layers, &origin, change)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;

    use training::Objective;

    use super::layers::merge;
    use super::*;

    fn table(text: &str) -> Table {
        toml::from_str(text).unwrap()
    }

    fn set(below: &str, settings: &[&str]) -> Config {
        let mut below = Layers::new(table(below), Path::new(""));
        let settings: Vec<String> = settings.iter().map(|text| (*text).to_owned()).collect();
        apply_settings(&mut below, &settings).unwrap();
        resolve(below, "here").unwrap()
    }

    #[test]
    fn a_base_is_taken_out_of_the_text_and_leaves_the_lines_in_place() {
        let text = "# A file.\nbase = \"a b.toml\" # with a base\n[train]\nstep = 3\n";
        let path = Path::new("mine.toml");
        let (base, rest) = take_base(path, text.to_owned()).unwrap();
        assert_eq!(base.unwrap(), Path::new("a b.toml"));
        assert_eq!(rest, text.replace("base = \"a b.toml\"", &" ".repeat(17)));
        let error = parse::<Config>(path, &rest).unwrap_err().to_string();
        assert!(error.contains("line 4"), "{error}");
        let (base, rest) = take_base(path, "[train]\nsteps = 3".to_owned()).unwrap();
        assert_eq!((base, rest.as_str()), (None, "[train]\nsteps = 3"));
        assert!(take_base(path, "base = 3".to_owned()).is_err());
    }

    #[test]
    fn changing_a_samplers_method_keeps_its_other_settings() {
        let below = "[sample.sampler]\nmethod = 'heun'\nnum_steps = 12\ncfg_scale = 1.5\nguidance_high = 0.7";
        let flag = |name: &str| format!("sample.sampler.method={name}");
        for settings in [
            vec![flag("euler")],
            vec!["sample.sampler.num_steps=7".to_owned(), flag("euler")],
            vec![flag("euler"), "sample.sampler.num_steps=7".to_owned()],
        ] {
            let texts: Vec<&str> = settings.iter().map(String::as_str).collect();
            let sampler = set(below, &texts).sample.sampler;
            let steps = if settings.len() == 1 { 12 } else { 7 };
            assert_eq!(sampler.method, diffusion::samplers::Method::Euler);
            assert_eq!((sampler.num_steps, sampler.cfg_scale), (steps, 1.5));
            assert_eq!(sampler.guidance_high, 0.7);
        }
    }

    #[test]
    fn a_change_of_variant_keeps_common_settings_and_drops_the_others() {
        for (below, top, expected) in [
            (
                "objective = { kind = 'velocity', path = 'cosine', time = 'uniform' }",
                "objective = { kind = 'meanflow', cfg_omega = 0.2 }",
                "objective = { kind = 'meanflow', cfg_omega = 0.2, path = 'cosine' }",
            ),
            // Without a `kind`, the table has the default variant.
            (
                "objective = { path = 'cosine' }",
                "objective = { kind = 'repa-e', lpips = 'a' }",
                "objective = { kind = 'repa-e', lpips = 'a', path = 'cosine' }",
            ),
            (
                "objective = { path = 'cosine' }",
                "objective = { kind = 'x-prediction' }",
                "objective = { kind = 'x-prediction' }",
            ),
            (
                "objective = { kind = 'meanflow', time = { mu = 0.5 }, path = 'cosine' }",
                "objective = { kind = 'velocity' }",
                "objective = { kind = 'velocity', path = 'cosine' }",
            ),
            (
                "alignment.head = { kind = 'mlp', width = 64 }",
                "alignment.head = { kind = 'conv' }",
                "alignment.head = { kind = 'conv' }",
            ),
            (
                "alignment.spatial_norm = { method = 'zscore', alpha = 0.8, eps = 1e-3 }",
                "alignment.spatial_norm = { method = 'none' }",
                "alignment.spatial_norm = { method = 'none' }",
            ),
            (
                "model.autoencoder = { kind = 'kl', weights = 'a' }",
                "model.autoencoder = { kind = 'identity' }",
                "model.autoencoder = { kind = 'identity' }",
            ),
            (
                "model.autoencoder = 'identity'",
                "model.autoencoder = { kind = 'kl', weights = 'a' }",
                "model.autoencoder = { kind = 'kl', weights = 'a' }",
            ),
            (
                "sample.sampler = { method = 'heun', num_steps = 3, guidance_low = 0.2 }",
                "sample.sampler = { method = 'euler', num_steps = 4 }",
                "sample.sampler = { method = 'euler', num_steps = 4, guidance_low = 0.2 }",
            ),
        ] {
            let mut merged = table(below);
            merge(&mut merged, table(top));
            assert_eq!(merged, table(expected), "{top} over {below}");
            let _parses: Config = Value::Table(merged).try_into().unwrap();
        }
    }

    #[test]
    fn the_guidance_interval_of_jit_is_converted_to_the_time_of_the_other_samplers() {
        for name in ["jit-b16", "jit-l16"] {
            let path =
                Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../../configs/{name}.toml"));
            let sampler = load(&path, &[]).unwrap().sample.sampler;
            // In the paper it is [0.1, 1], with time 0 at the noise.
            assert_eq!(
                (sampler.guidance_low, sampler.guidance_high),
                (0.0, 0.9),
                "{name}"
            );
        }
    }

    #[test]
    fn settings_of_the_command_line_do_not_drop_each_other() {
        let below = table("objective = { kind = 'velocity', path = 'cosine' }");
        let mut below = Layers::new(below, Path::new(""));
        let settings = ["objective.cfg_omga=0.2", "objective.kind=meanflow"].map(str::to_owned);
        apply_settings(&mut below, &settings).unwrap();
        let error = resolve(below, "here").unwrap_err().to_string();
        assert!(error.contains("cfg_omga"), "{error}");
        assert!(error.contains("Did you mean `cfg_omega`?"), "{error}");
        let settings = [
            "objective.cfg_omega=0.2",
            "objective={kind='meanflow', cfg_kappa=0.5}",
            "sample.sampler.method=euler",
        ];
        let Objective::Meanflow(meanflow) = set("", &settings).objective else {
            panic!("another objective");
        };
        assert_eq!((meanflow.cfg_omega, meanflow.cfg_kappa), (0.2, 0.5));
    }

    /// A configuration with all kinds of paths, including `..`.
    const PATHS: &str = r#"
        [data]
        path = "../images"
        token_cache = "tokens"
        [model.autoencoder]
        kind = "kl"
        weights = "../../vae.safetensors"
        train = true
        [objective]
        kind = "repa-e"
        lpips = "."
        discriminator_weights = "/absolute/d.safetensors"
    "#;

    #[test]
    fn a_path_is_relative_to_the_file_that_names_it() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let write = |name: &str, text: &str| {
            fs::create_dir_all(root.join(name).parent().unwrap()).unwrap();
            fs::write(root.join(name), text).unwrap();
        };
        write("a/b/base.toml", PATHS);
        // Two files on top of it; one of them replaces a path.
        write(
            "a/mine.toml",
            "base = \"b/base.toml\"\n[data]\ntoken_cache = \"../tokens\"",
        );
        write(
            "far/away.toml",
            "base = \"../a/mine.toml\"\n[data]\nflip = false",
        );
        let settings = ["objective.lpips=other.safetensors".to_owned()];
        let config = load(&root.join("far/away.toml"), &settings).unwrap();
        let found: BTreeMap<String, ConfigPath> = config
            .paths()
            .into_iter()
            .map(|(key, path)| (key.join("."), path))
            .collect();
        for (key, path) in [
            ("data.path", root.join("a/images")),
            ("data.token_cache", root.join("tokens")),
            ("model.autoencoder.weights", root.join("vae.safetensors")),
            // A path of the command line is relative to the working directory.
            ("objective.lpips", "other.safetensors".into()),
            (
                "objective.discriminator_weights",
                "/absolute/d.safetensors".into(),
            ),
        ] {
            assert_eq!(found[key], ConfigPath::from(path), "{key}");
        }
        let config = load(&root.join("a/b/base.toml"), &[]).unwrap();
        let Objective::RepaE(joint) = &config.objective else {
            panic!()
        };
        assert_eq!(*joint.lpips, *root.join("a/b"));

        // A written configuration can be read from any folder.
        write("elsewhere/config.toml", &to_file(&config).unwrap());
        assert_eq!(
            load(&root.join("elsewhere/config.toml"), &[]).unwrap(),
            config
        );
    }

    #[test]
    fn other_strings_are_not_resolved_as_paths() {
        let below = table("[data]\nsplit = 'val'\n[model]\nname = 'SiT-B/2'");
        let config = resolve(Layers::new(below, Path::new("/elsewhere")), "here").unwrap();
        assert_eq!(
            (&*config.data.split, &*config.model.name),
            ("val", "SiT-B/2")
        );
        // A default path stays as it is.
        assert_eq!(config.data.path, Config::default().data.path);
    }

    #[test]
    fn paths_are_simplified_except_after_symbolic_links() {
        for (path, tidied) in [
            ("./a/./b", "a/b"),
            ("a/../b", "b"),
            ("a/..", "."),
            (".", "."),
            ("", ""),
            ("../../a", "../../a"),
            ("/a/../../b", "/../b"),
        ] {
            assert_eq!(tidy(Path::new(path)), Path::new(tidied), "{path}");
        }
        #[cfg(unix)]
        {
            let folder = tempfile::tempdir().unwrap();
            let root = folder.path().canonicalize().unwrap();
            fs::create_dir_all(root.join("real/inner")).unwrap();
            std::os::unix::fs::symlink(root.join("real/inner"), root.join("link")).unwrap();
            let through = tidy(&root.join("link/../x"));
            assert_eq!(through, root.join("link/../x"));
        }
    }
}
