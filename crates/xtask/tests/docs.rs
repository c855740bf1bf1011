//! Links and paths in the documentation exist.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Folders of the repository whose paths are checked where a text names them in backticks.
const FOLDERS: [&str; 6] = [
    "crates/",
    "docs/",
    "configs/",
    "experiments/",
    "benches/",
    ".ci/",
];

fn root() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    root.canonicalize().unwrap()
}

/// The Markdown files that git tracks.
fn documents(root: &Path) -> Vec<PathBuf> {
    let output = Command::new("git")
        .args(["ls-files", "*.md"])
        .current_dir(root)
        .output()
        .unwrap();
    assert!(output.status.success());
    let names = String::from_utf8(output.stdout).unwrap();
    names.lines().map(|name| root.join(name)).collect()
}

/// The parts of `text` between `open` and `close`.
fn between<'a>(text: &'a str, open: &str, close: char) -> Vec<&'a str> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find(open) {
        rest = &rest[start + open.len()..];
        let Some(end) = rest.find(close) else { break };
        found.push(&rest[..end]);
        rest = &rest[end + 1..];
    }
    found
}

/// Targets of links `[...](target)` to files, without their anchors.
fn links(text: &str) -> Vec<&str> {
    between(text, "](", ')')
        .into_iter()
        .filter(|target| !target.contains("://") && !target.starts_with("mailto:"))
        .filter_map(|target| target.split('#').next())
        .filter(|path| !path.is_empty())
        .collect()
}

/// Paths of the repository in backticks. One with a placeholder (`NAME`, `*`, `{a,b}`) names no single file.
fn paths(text: &str) -> Vec<&str> {
    let is_path = |word: &&str| {
        FOLDERS.iter().any(|folder| word.starts_with(folder))
            && !word.contains(|c: char| c.is_whitespace() || "*{}<>()$".contains(c))
            && !word.split(['/', '.']).any(|part| {
                part.len() > 1
                    && part.chars().all(|c| c.is_ascii_uppercase() || c == '_')
                    && !matches!(part, "README" | "CHANGELOG" | "CONTRIBUTING" | "LICENSE")
            })
    };
    // Code blocks have three backticks; what is left has pairs of one.
    let prose = text.split("```").step_by(2);
    prose
        .flat_map(|part| part.split('`').skip(1).step_by(2))
        .filter(is_path)
        .collect()
}

#[test]
fn links_and_paths_of_the_documentation_exist() {
    let root = root();
    let mut missing = Vec::new();
    let (mut link_count, mut path_count) = (0, 0);
    for document in documents(&root) {
        let text = fs::read_to_string(&document).unwrap();
        let folder = document.parent().unwrap();
        let found_links = links(&text).into_iter().map(|link| (link, folder));
        let found_paths = paths(&text).into_iter().map(|path| (path, root.as_path()));
        link_count += links(&text).len();
        path_count += paths(&text).len();
        for (path, base) in found_links.chain(found_paths) {
            let file = path.split(':').next().unwrap();
            if !base.join(file).exists() {
                missing.push(format!("{}: {path}", document.display()));
            }
        }
    }
    assert_eq!(missing, Vec::<String>::new());
    assert!(
        link_count > 20 && path_count > 20,
        "{link_count} links, {path_count} paths"
    );
}

#[test]
fn placeholders_and_addresses_are_not_paths() {
    let text = "`crates/irepa` `docs/results/NAME.md` `configs/*.toml` `runs/a` [a](https://b/c) [d](e.md#f)\n\
                ```\n`crates/none`\n```\n";
    assert_eq!(paths(text), ["crates/irepa"]);
    assert_eq!(links(text), ["e.md"]);
}
