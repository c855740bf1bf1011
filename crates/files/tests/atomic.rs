//! Tests that files and folders appear complete or not at all, and that leftovers of killed processes are told apart
//! from files that are being written.

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::process::Command;

use files::{AtomicFile, AtomicFolder, AtomicPath, LeftoverScope};

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[test]
fn a_failed_write_leaves_only_the_old_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.json");
    files::write(&path, |file| file.write_all(b"one")).unwrap();
    let failed = files::write(&path, |file| {
        file.write_all(b"half")?;
        Err(io::Error::other("stop"))
    });
    assert_eq!(failed.unwrap_err().to_string(), "stop");
    assert_eq!(fs::read(&path).unwrap(), b"one");
    files::write(&path, |file| file.write_all(b"two")).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"two");
    assert_eq!(names(folder.path()), ["a.json"]);
}

#[cfg(unix)]
#[test]
fn files_and_folders_have_default_permissions() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let mode = |name: &str| {
        let metadata = fs::metadata(folder.path().join(name)).unwrap();
        metadata.permissions().mode()
    };
    fs::write(folder.path().join("plain"), "").unwrap();
    fs::create_dir(folder.path().join("plain folder")).unwrap();
    files::write(&folder.path().join("written"), |_| Ok(())).unwrap();
    // Some writers replace the file with one that only the owner may read.
    let replaced = AtomicPath::create(&folder.path().join("replaced")).unwrap();
    fs::remove_file(replaced.path()).unwrap();
    fs::write(replaced.path(), "new").unwrap();
    fs::set_permissions(replaced.path(), fs::Permissions::from_mode(0o600)).unwrap();
    replaced.commit().unwrap();
    assert_eq!(fs::read(folder.path().join("replaced")).unwrap(), b"new");
    let whole = AtomicFolder::create(&folder.path().join("folder")).unwrap();
    whole.commit().unwrap();
    assert_eq!(mode("written"), mode("plain"));
    assert_eq!(mode("replaced"), mode("plain"));
    assert_eq!(mode("folder"), mode("plain folder"));
}

#[test]
fn a_folder_appears_complete_and_replaces_another() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("step-1");
    for content in ["one", "two"] {
        let new = AtomicFolder::create(&path).unwrap();
        fs::create_dir(new.path().join("inner")).unwrap();
        fs::write(new.path().join("inner/file"), content).unwrap();
        new.commit().unwrap();
        assert_eq!(
            fs::read_to_string(path.join("inner/file")).unwrap(),
            content
        );
        assert_eq!(names(folder.path()), ["step-1"]);
    }
    drop(AtomicFolder::create(&path).unwrap());
    assert_eq!(names(folder.path()), ["step-1"]);
    assert!(path.join("inner/file").exists());
}

#[test]
fn errors_do_not_name_temporary_files() {
    let folder = tempfile::tempdir().unwrap();
    let error = AtomicFile::create(&folder.path().join("missing/file")).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::NotFound);
    assert!(!error.to_string().contains("tmp"), "{error}");
    let error = AtomicFile::create(Path::new("/")).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    // The longest name that file systems allow.
    let long = folder.path().join("ä".repeat(127));
    files::write(&long, |_| Ok(())).unwrap();
    assert!(long.exists());
}

#[cfg(target_os = "linux")]
#[test]
fn leftovers_of_ended_processes_are_removed_and_files_being_written_stay() {
    let folder = tempfile::tempdir().unwrap();
    let running = AtomicFile::create(&folder.path().join("result.json")).unwrap();
    let running_folder = AtomicFolder::create(&folder.path().join("step-1")).unwrap();
    let name = names(folder.path())
        .into_iter()
        .find(|name| name.starts_with(".result.json."))
        .unwrap();
    // `.result.json.MACHINE-PROCESS-START-RANDOM.tmp`, of a process that has ended.
    let mut child = Command::new("true").spawn().unwrap();
    child.wait().unwrap();
    let me = format!("-{}-", std::process::id());
    let ended = name.replacen(&me, &format!("-{}-", child.id()), 1);
    let machine = name.rsplit_once('.').unwrap().0.rsplit_once('.').unwrap().1;
    let machine = machine.split('-').next().unwrap();
    let elsewhere = name.replacen(machine, "0123456789abcdef", 1);
    let another = ended.replacen("result", "other", 1);
    let make = || {
        fs::write(folder.path().join(&ended), "half").unwrap();
        fs::create_dir_all(folder.path().join(&another).join("inner")).unwrap();
        fs::write(folder.path().join(&elsewhere), "half").unwrap();
        fs::write(folder.path().join(".hidden.tmp"), "a user's").unwrap();
    };
    let exists = |name: &str| folder.path().join(name).exists();
    make();
    files::remove_leftovers_of(&folder.path().join("result.json")).unwrap();
    assert!(!exists(&ended) && exists(&another) && exists(&elsewhere));
    make();
    files::remove_leftovers(folder.path(), LeftoverScope::Ended).unwrap();
    assert!(!exists(&ended) && !exists(&another) && exists(&elsewhere));
    make();
    files::remove_leftovers(folder.path(), LeftoverScope::EndedOrUnknown).unwrap();
    assert!(!exists(&ended) && !exists(&another) && !exists(&elsewhere));
    assert!(exists(".hidden.tmp"));
    running.commit().unwrap();
    running_folder.commit().unwrap();
    assert!(exists("result.json") && exists("step-1"));
    files::remove_leftovers(&folder.path().join("absent"), LeftoverScope::EndedOrUnknown).unwrap();
}
