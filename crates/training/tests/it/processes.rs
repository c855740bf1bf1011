//! Training by several processes, which share each batch.
//!
//! A test starts this program again, once for each rank, with its own name as the filter.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use data::Loader;
use metrics::figures::Figure;
use tch::{Device, Tensor};
use torch_ext::distributed::{ProcessGroup, Store, World};
use training::{
    Checkpoint, Config, DeviceBatch, MetricsLog, StepMetrics, TrainError, Trainer, rows,
};

use crate::runs::{config, dataset, inputs, jit, meanflow, repa_e, tokens};

const TIMEOUT: Duration = Duration::from_secs(120);

/// Folder in which rank 0 writes its results.
const FOLDER: &str = "PROCESSES_TEST_FOLDER";

/// Starts a rank of a test of this module.
fn start(test: &str, rank: usize, size: usize, port: u16, folder: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args([&format!("processes::{test}"), "--exact", "--nocapture"])
        // The ranks share the processor's cores.
        .env("OMP_NUM_THREADS", "1")
        .env("RANK", rank.to_string())
        .env("WORLD_SIZE", size.to_string())
        .env("LOCAL_RANK", rank.to_string())
        .env("MASTER_ADDR", "127.0.0.1")
        .env("MASTER_PORT", port.to_string())
        .env(FOLDER, folder)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// The world of a process on this machine.
fn world(rank: usize, size: usize, port: u16) -> World {
    let variable = |name: &str| match name {
        "RANK" | "LOCAL_RANK" => Some(rank.to_string()),
        "WORLD_SIZE" => Some(size.to_string()),
        "MASTER_ADDR" => Some("127.0.0.1".to_owned()),
        "MASTER_PORT" => Some(port.to_string()),
        _ => None,
    };
    World::from_variables(variable).unwrap().unwrap()
}

/// Runs all ranks of a test.
fn run_ranks(test: &str, size: usize, folder: &Path) {
    let port = free_port();
    let ranks: Vec<_> = (0..size)
        .map(|rank| start(test, rank, size, port, folder))
        .collect();
    for (rank, child) in ranks.into_iter().enumerate() {
        let output = child.wait_with_output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(
            output.status.success(),
            "rank {rank} of {size}: {}\n{}\n{}",
            output.status,
            text(&output.stdout),
            text(&output.stderr)
        );
    }
}

/// The configurations that several processes can train.
fn configs() -> [(&'static str, Config); 6] {
    let mut plain = config(20);
    plain.train.accumulation = 1;
    let mut parts = config(5);
    parts.train.accumulation = 2;
    let mut halves = config(4);
    halves.train.accumulation = 2;
    [
        ("sit", plain.clone()),
        ("sit-accumulation", parts),
        ("jit", jit(plain.clone())),
        ("meanflow", meanflow(plain.clone())),
        ("repa-e", repa_e(plain)),
        ("repa-e-accumulation", repa_e(halves)),
    ]
}

/// The rows of a batch that this process takes.
fn share(batch: DeviceBatch, rows: &[usize]) -> DeviceBatch {
    let index: Vec<i64> = rows.iter().map(|&row| row as i64).collect();
    let index = Tensor::from_slice(&index);
    DeviceBatch {
        images: batch.images.index_select(0, &index),
        labels: batch.labels.index_select(0, &index),
        moments: None,
        ids: rows.iter().map(|&row| batch.ids[row]).collect(),
        flipped: rows.iter().map(|&row| batch.flipped[row]).collect(),
        cursor: batch.cursor,
    }
}

/// Does `count` steps from the checkpoint in `from`, or from the start.
fn train(
    config: &Config,
    group: Option<ProcessGroup>,
    from: Option<&Path>,
    count: u64,
) -> (Trainer, Vec<StepMetrics>) {
    let mut trainer = Trainer::new(config, inputs()).unwrap();
    if let Some(folder) = from {
        let hash = trainer.hash();
        let newest = Checkpoint::newest(folder, &hash, config.train.steps).unwrap();
        trainer.resume(&newest.unwrap()).unwrap();
    }
    let own = group
        .as_ref()
        .map(|group| rows(&config.train, group.world()).unwrap());
    if let Some(group) = group {
        trainer.distribute(group).unwrap();
    }
    let loader = Loader::new(dataset(), config.loader(), trainer.cursor()).unwrap();
    let stop = trainer.steps_done() + count;
    let mut lines = Vec::new();
    for batch in loader {
        if trainer.steps_done() >= stop {
            break;
        }
        let batch = DeviceBatch::new(batch.unwrap(), Device::Cpu).unwrap();
        let batch = match &own {
            Some(rows) => share(batch, rows),
            None => batch,
        };
        let tokens = tokens(&batch);
        lines.extend(trainer.step(&batch, &[tokens]).unwrap());
    }
    lines.extend(trainer.finish_step().unwrap());
    (trainer, lines)
}

/// The folder of the test, in a rank.
fn folder() -> PathBuf {
    std::env::var_os(FOLDER).unwrap().into()
}

fn compare(what: &str, found: &[StepMetrics], expected: &[StepMetrics], tolerance: f64) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (found, expected) in found.iter().zip(expected) {
        assert_eq!(found.step, expected.step, "{what}");
        for figure in [
            Figure::Loss,
            Figure::DenoisingLoss,
            Figure::AlignmentLoss,
            Figure::GradNorm,
        ] {
            let (found_value, value) = (found.get(figure).unwrap(), expected.get(figure).unwrap());
            let error = (found_value - value).abs() / value.abs();
            assert!(
                error <= tolerance,
                "{what}, step {}: {figure:?} is {found_value} instead of {value}",
                found.step
            );
        }
    }
}

/// The bytes of all weights.
fn bits(trainer: &Trainer) -> Vec<u8> {
    let weights = trainer.params().state_dict();
    let values = |tensor: &Tensor| Vec::<f32>::try_from(tensor.flatten(0, -1)).unwrap();
    let weights = weights.iter().flat_map(|(_, tensor)| values(tensor));
    weights.flat_map(f32::to_le_bytes).collect()
}

#[test]
fn two_processes_compute_what_one_does() {
    if let Some(world) = World::from_env().unwrap() {
        let store = Store::connect(&world, TIMEOUT).unwrap();
        for (name, config) in configs() {
            let group = ProcessGroup::gloo(&store, &world, name, TIMEOUT).unwrap();
            let (trainer, lines) = train(&config, Some(group), None, config.train.steps);
            if world.rank == 0 {
                let mut log = MetricsLog::open(&folder().join(name), 0).unwrap();
                lines.iter().for_each(|line| log.append(line).unwrap());
            }
            let weights = bits(&trainer);
            fs::write(folder().join(format!("{name}.{}", world.rank)), weights).unwrap();
        }
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    run_ranks("two_processes_compute_what_one_does", 2, folder.path());
    for (name, config) in configs() {
        let lines = MetricsLog::read(&folder.path().join(name)).unwrap();
        let (_, expected) = train(&config, None, None, config.train.steps);
        compare(name, &lines, &expected, 1e-5);
        // All ranks have the same bits.
        let weights = |rank: usize| fs::read(folder.path().join(format!("{name}.{rank}"))).unwrap();
        assert!(!weights(0).is_empty() && weights(0) == weights(1), "{name}");
    }
}

#[test]
fn a_checkpoint_is_resumed_by_another_number_of_processes() {
    let config = &configs()[0].1;
    let checkpoints = |name: &str| folder().join(name);
    if let Some(world) = World::from_env().unwrap() {
        let store = Store::connect(&world, TIMEOUT).unwrap();
        let group = |name| ProcessGroup::gloo(&store, &world, name, TIMEOUT).unwrap();
        let from = checkpoints("from");
        let (trainer, lines) = train(config, Some(group("resumed")), Some(&from), 3);
        if world.rank == 0 {
            trainer
                .checkpoint()
                .unwrap()
                .save(&checkpoints("to"))
                .unwrap();
            let mut log = MetricsLog::open(&folder().join("log"), 0).unwrap();
            lines.iter().for_each(|line| log.append(line).unwrap());
        }
        // Rank 0 serves the store, so it leaves last.
        group("end").barrier().unwrap();
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let (_, expected) = train(config, None, None, 12);
    let (trainer, _) = train(config, None, None, 3);
    trainer.checkpoint().unwrap().save(&at("from")).unwrap();
    // From 1 to 2 processes, then from 2 to 4, then from 4 to 1.
    for (size, steps) in [(2, 3..6), (4, 6..9)] {
        run_ranks(
            "a_checkpoint_is_resumed_by_another_number_of_processes",
            size,
            folder.path(),
        );
        let lines = MetricsLog::read(&at("log")).unwrap();
        compare(&format!("{size} processes"), &lines, &expected[steps], 1e-5);
        fs::remove_file(at("log")).unwrap();
        fs::remove_dir_all(at("from")).unwrap();
        fs::rename(at("to"), at("from")).unwrap();
    }
    let (_, lines) = train(config, None, Some(&at("from")), 3);
    compare("resumed by one process", &lines, &expected[9..], 1e-5);
}

#[test]
fn a_resumed_run_has_the_bits_of_an_uninterrupted_one() {
    let Some(world) = World::from_env().unwrap() else {
        let folder = tempfile::tempdir().unwrap();
        let test = "a_resumed_run_has_the_bits_of_an_uninterrupted_one";
        // The order of a sum matters from 3 processes on.
        run_ranks(test, 4, folder.path());
        return;
    };
    let store = Store::connect(&world, TIMEOUT).unwrap();
    let group = |name: &str| ProcessGroup::gloo(&store, &world, name, TIMEOUT).unwrap();
    let [(sit, plain), .., (repa_e, joint), _] = &configs();
    for (name, config) in [(sit, plain), (repa_e, joint)] {
        let of = |part: &str| group(&format!("{name}-{part}"));
        let (whole, _) = train(config, Some(of("whole")), None, 4);
        let (first, _) = train(config, Some(of("first")), None, 2);
        let saved = folder().join(format!("{name}-{}", world.rank));
        first.checkpoint().unwrap().save(&saved).unwrap();
        let (resumed, _) = train(config, Some(of("resumed")), Some(&saved), 2);
        assert!(bits(&resumed) == bits(&whole), "{name}");
        assert!(bits(&resumed) != bits(&first), "{name}");
    }
    // Rank 0 serves the store, so it leaves last.
    group("end").barrier().unwrap();
}

#[test]
fn batches_that_cannot_be_shared_are_refused() {
    let world = |rank, size| world(rank, size, 29500);
    let mut train = config(1).train;
    (train.batch_size, train.accumulation) = (8, 2);
    // Every part is shared: the rows of the parts are 0 to 3 and 4 to 7.
    assert_eq!(rows(&train, &world(0, 2)).unwrap(), [0, 1, 4, 5]);
    assert_eq!(rows(&train, &world(1, 2)).unwrap(), [2, 3, 6, 7]);
    let error = rows(&train, &world(0, 3)).unwrap_err();
    assert!(matches!(error, TrainError::Processes { processes: 3, .. }));
    let message = error.to_string();
    assert!(
        message.contains("train.batch_size is 8") && message.contains("a multiple of 6"),
        "{message}"
    );
}
