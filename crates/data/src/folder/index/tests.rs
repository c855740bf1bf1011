use std::os::unix::fs::symlink;
use std::thread::sleep;

use super::*;
use crate::dataset::{Dataset, OpenOptions};
use crate::folder::FolderDataset;
use crate::folder::listing::Listing;

/// The smallest PNG signature; nothing here decodes images.
const PNG: &[u8] = b"\x89PNG\r\n\x1a\n";

/// A folder of class folders, the user's cache, and rules for small folders.
struct Case {
    folder: tempfile::TempDir,
    rules: Rules,
}

impl Case {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let case = Self {
            rules: Rules {
                min_files: 4,
                settled_after: Duration::ZERO,
                user_cache: Some(folder.path().join("cache")),
            },
            folder,
        };
        for (class, file) in [
            ("ant", "1"),
            ("ant", "2"),
            ("bee", "3"),
            ("bee/deep", "4"),
            ("cat", "5"),
        ] {
            case.write(&format!("{class}/{file}.png"), PNG);
        }
        case.settle();
        case
    }

    fn root(&self) -> PathBuf {
        self.folder.path().join("set")
    }

    fn write(&self, file: &str, bytes: &[u8]) {
        let path = self.root().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    /// Waits until the next change gets another time.
    fn settle(&self) {
        sleep(Duration::from_millis(30));
    }

    fn open(&self) -> FolderDataset {
        let options = OpenOptions::default();
        FolderDataset::open_with(&self.root(), "set".to_owned(), &options, &self.rules).unwrap()
    }

    /// Opens the data set with and without index, compares both and returns how many folders were reused.
    fn reused(&self) -> usize {
        let reused = Listing::of(&self.root(), &self.rules)
            .unwrap()
            .index
            .reused_folders;
        let found = self.open();
        let rules = Rules {
            min_files: usize::MAX,
            user_cache: None,
            ..self.rules.clone()
        };
        let index = self.root().join(FILE);
        let hidden = self.folder.path().join("hidden");
        let is_moved = fs::rename(&index, &hidden).is_ok();
        let options = OpenOptions::default();
        let listed =
            FolderDataset::open_with(&self.root(), "set".to_owned(), &options, &rules).unwrap();
        if is_moved {
            fs::rename(&hidden, &index).unwrap();
        }
        assert_eq!(found.fingerprint(), listed.fingerprint());
        assert_eq!(found.class_names(), listed.class_names());
        assert_eq!(found.files, listed.files);
        reused
    }
}

#[test]
fn only_folders_that_changed_are_listed_again() {
    let case = Case::new();
    assert_eq!(case.reused(), 0);
    assert!(case.root().join(FILE).exists());
    // ant, bee, bee/deep and cat; the index itself changed the root.
    assert_eq!(case.reused(), 4);
    case.write("bee/deep/6.png", PNG);
    case.write("bee/notes.txt", b"skipped");
    case.settle();
    assert_eq!(case.reused(), 2);
    assert_eq!(case.reused(), 4);
    fs::rename(case.root().join("ant/1.png"), case.root().join("ant/0.png")).unwrap();
    fs::remove_dir_all(case.root().join("cat")).unwrap();
    case.write("dog/7.png", PNG);
    case.settle();
    assert_eq!(case.reused(), 2);
    assert_eq!(case.reused(), 4);
    assert_eq!(case.open().class_names(), ["ant", "bee", "dog"]);
}

#[test]
fn an_index_that_is_up_to_date_is_not_written_again() {
    let case = Case::new();
    case.open();
    let written = || fs::metadata(case.root().join(FILE)).unwrap().ino();
    let first = written();
    case.open();
    assert_eq!(written(), first);
}

#[test]
fn damaged_foreign_and_old_indices_are_ignored_and_replaced() {
    let case = Case::new();
    case.open();
    let path = case.root().join(FILE);
    let valid = fs::read(&path).unwrap();
    let mut damaged = Vec::new();
    for position in [0, MAGIC.len(), MAGIC.len() + HASH, valid.len() - 1] {
        let mut bytes = valid.clone();
        bytes[position] ^= 1;
        damaged.push(bytes);
    }
    damaged.extend([
        Vec::new(),
        valid[..valid.len() / 2].to_vec(),
        MAGIC.to_vec(),
        b"a note".to_vec(),
    ]);
    // A valid hash of records that make no sense.
    let nonsense = [9; 40];
    damaged.push([MAGIC, &Sha256::digest(nonsense), &nonsense].concat());
    for bytes in damaged {
        fs::write(&path, bytes).unwrap();
        assert_eq!(case.reused(), 0);
        assert_eq!(fs::read(&path).unwrap(), valid);
    }

    // The index of another folder has other inode numbers.
    let other = Case::new();
    fs::write(other.root().join(FILE), &valid).unwrap();
    assert_eq!(other.reused(), 0);
    assert_eq!(other.reused(), 4);
}

#[test]
fn folders_that_have_just_changed_are_not_remembered() {
    let mut case = Case::new();
    case.rules.settled_after = Duration::from_secs(3600);
    case.open();
    assert!(!case.root().join(FILE).exists());
    case.rules.settled_after = Duration::from_secs(1);
    sleep(Duration::from_secs(1));
    case.write("ant/9.png", PNG);
    assert_eq!(case.reused(), 0);
    assert_eq!(case.reused(), 3);
}

#[test]
fn small_folders_have_no_index() {
    let mut case = Case::new();
    case.rules.min_files = 6;
    assert_eq!(case.reused(), 0);
    assert!(!case.root().join(FILE).exists() && !case.folder.path().join("cache").exists());
}

#[test]
fn the_index_of_a_flat_folder_is_in_the_users_cache() {
    let mut case = Case::new();
    fs::remove_dir_all(case.root()).unwrap();
    for index in 0..5 {
        case.write(&format!("{index}.png"), PNG);
    }
    case.settle();
    case.open();
    assert_eq!(case.reused(), 1);
    assert!(!case.root().join(FILE).exists());
    assert_eq!(
        fs::read_dir(case.folder.path().join("cache"))
            .unwrap()
            .count(),
        1
    );
    case.rules.user_cache = None;
    assert_eq!(case.reused(), 0);
}

#[test]
fn links_are_followed_each_time() {
    let case = Case::new();
    let target = case.folder.path().join("target.png");
    fs::write(&target, PNG).unwrap();
    symlink(&target, case.root().join("ant/link.png")).unwrap();
    symlink(case.root().join("bee"), case.root().join("link")).unwrap();
    case.settle();
    case.open();
    assert_eq!(case.reused(), 6);
    let before = case.open().fingerprint().to_owned();
    fs::write(&target, [PNG, b"longer"].concat()).unwrap();
    assert_eq!(case.reused(), 6);
    assert_ne!(case.open().fingerprint(), before);
    fs::remove_file(&target).unwrap();
    let error = FolderDataset::open_with(
        &case.root(),
        String::new(),
        &OpenOptions::default(),
        &case.rules,
    );
    assert!(error.unwrap_err().to_string().contains("broken links"));
}

#[test]
fn images_that_were_written_again_in_place_are_noticed() {
    let case = Case::new();
    case.open();
    let before = case.open().fingerprint().to_owned();
    fs::write(case.root().join("ant/1.png"), [PNG, b"longer"].concat()).unwrap();
    assert_eq!(case.reused(), 0);
    assert_ne!(case.open().fingerprint(), before);
    assert_eq!(case.reused(), 4);
}
