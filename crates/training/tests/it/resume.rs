//! Resuming: an interrupted run ends with the same bits as an uninterrupted one.

use std::fs;
use std::path::Path;

use metrics::figures::Figure;
use tch::{Device, Kind, Tensor};
use training::checkpoint::{self, Checkpoint, CheckpointId};
use training::{Config, MetricsLog, Run, Sampling, Schedule, Trainer};

use crate::runs::{advance, assert_same_outcome, config, inputs, jit, meanflow, repa_e, vae};

#[test]
fn an_interrupted_run_ends_with_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(9);
    advance(&folder.path().join("whole"), &config, 9, 0);
    for (stops, workers) in [(vec![1], 1), (vec![2, 5], 2), (vec![4, 7, 8], 0)] {
        let part = folder.path().join(format!("part{stops:?}"));
        for stop in stops {
            advance(&part, &config, stop, workers);
        }
        advance(&part, &config, 9, workers);
        assert_same_outcome(&folder.path().join("whole"), &part);
    }
}

#[test]
fn every_variant_resumes_to_the_same_bits() {
    for variant in [jit, meanflow, repa_e] {
        let folder = tempfile::tempdir().unwrap();
        let config = variant(config(5));
        advance(&folder.path().join("whole"), &config, 5, 0);
        let part = folder.path().join("part");
        advance(&part, &config, 3, 1);
        advance(&part, &config, 5, 1);
        assert_same_outcome(&folder.path().join("whole"), &part);
        let log = MetricsLog::read(&part.join("metrics.jsonl")).unwrap();
        let last = log.last().unwrap();
        assert!(last.get(Figure::AlignmentLoss).is_some());
        assert!(last.get(Figure::DenoisingLoss) > Some(0.0));
        // The checkpoint can be sampled, with the number of classes of its own weights.
        let newest = checkpoint::list(&part.join("checkpoints"))
            .unwrap()
            .pop()
            .unwrap();
        let saved = Checkpoint::load(&newest).unwrap();
        let sampling = Sampling::new(&config, &saved.ema, vae(&saved), Device::Cpu).unwrap();
        assert_eq!(sampling.num_classes(), inputs().num_classes);
        let images = sampling.sample(0, &[0, 1, 2], |_| {}).unwrap();
        assert_eq!(images.size(), [3, 3, 16, 16]);
    }
}

#[test]
fn a_second_average_and_a_cosine_survive_an_interruption() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(6);
    config.train.second_ema_decay = Some(0.5);
    config.optimizer.schedule = Schedule::Cosine;
    config.optimizer.min_lr = 1e-5;
    advance(&folder.path().join("whole"), &config, 6, 0);
    let part = folder.path().join("part");
    advance(&part, &config, 3, 1);
    advance(&part, &config, 6, 1);
    assert_same_outcome(&folder.path().join("whole"), &part);

    let newest = checkpoint::list(&part.join("checkpoints"))
        .unwrap()
        .pop()
        .unwrap();
    let saved = Checkpoint::load(&newest).unwrap();
    let second = saved.second_ema.unwrap();
    assert_eq!(second.len(), saved.ema.len());
    let differ = |left: &[(String, Tensor)], right: &[(String, Tensor)]| {
        left.iter().zip(right).filter(|(l, r)| l.1 != r.1).count()
    };
    assert!(differ(&second, &saved.ema) > 10 && differ(&second, &saved.model) > 10);
    let log = MetricsLog::read(&part.join("metrics.jsonl")).unwrap();
    assert_eq!(log.last().unwrap().get(Figure::LearningRate), Some(1e-5));
    // A run with a longer cosine schedule does not resume from this one, and neither does one without the second
    // average.
    let longer = Config {
        train: training::TrainConfig {
            steps: 8,
            ..config.train.clone()
        },
        ..config.clone()
    };
    assert_eq!(advance(&part, &longer, 0, 0).resumed_from(), 0);
    config.train.second_ema_decay = None;
    assert_eq!(advance(&part, &config, 0, 0).resumed_from(), 0);
}

#[test]
fn a_longer_run_resumes_from_a_finished_one() {
    let folder = tempfile::tempdir().unwrap();
    advance(&folder.path().join("long"), &config(8), 8, 0);
    advance(&folder.path().join("grown"), &config(4), 4, 0);
    let run = advance(&folder.path().join("grown"), &config(8), 8, 0);
    assert_eq!(run.resumed_from(), 4);
    assert_same_outcome(&folder.path().join("long"), &folder.path().join("grown"));
}

#[test]
fn a_checkpoint_of_another_configuration_is_not_resumed() {
    let folder = tempfile::tempdir().unwrap();
    advance(folder.path(), &config(2), 2, 0);
    let mut other = config(4);
    other.optimizer.lr = 5e-4;
    fs::write(folder.path().join("result.json"), "{}").unwrap();
    let log = fs::read(folder.path().join("metrics.jsonl")).unwrap();
    let run = advance(folder.path(), &other, 1, 0);
    assert_eq!(run.resumed_from(), 0);
    drop(run);
    // All files of the previous run are kept, apart from the new run's files.
    let before = folder.path().join("before/1");
    assert_eq!(fs::read(before.join("metrics.jsonl")).unwrap(), log);
    assert!(before.join("result.json").is_file());
    assert!(!folder.path().join("result.json").exists());
    assert_eq!(
        checkpoint::list(&before.join("checkpoints")).unwrap().len(),
        1
    );
}

#[test]
fn a_shorter_run_does_not_resume_from_a_longer_one() {
    let folder = tempfile::tempdir().unwrap();
    let kept = |steps| {
        let mut config = config(steps);
        config.train.keep_checkpoints = 1;
        config
    };
    advance(folder.path(), &kept(4), 4, 0);
    let run = advance(folder.path(), &kept(3), 3, 0);
    assert_eq!(run.resumed_from(), 0);
    assert_eq!(run.trainer().steps_done(), 3);
    let steps = |place: &Path| {
        let found = checkpoint::list(&place.join("checkpoints")).unwrap();
        found
            .iter()
            .map(|path| CheckpointId::read(path).unwrap().step)
            .collect::<Vec<_>>()
    };
    // The run keeps its own checkpoint, although the other one is of a later step.
    assert_eq!(steps(folder.path()), [3]);
    assert_eq!(steps(&folder.path().join("before/1")), [4]);
    assert_eq!(advance(folder.path(), &kept(4), 4, 0).resumed_from(), 3);
}

#[test]
fn a_checkpoint_of_another_kind_of_device_is_refused_with_advice() {
    let folder = tempfile::tempdir().unwrap();
    let run = advance(folder.path(), &config(4), 2, 0);
    let mut checkpoint = run.trainer().checkpoint().unwrap();
    // A CUDA generator's state is a seed and an offset.
    checkpoint.random[0].1 = Tensor::zeros([16], (Kind::Uint8, Device::Cpu));
    let mut trainer = Trainer::new(&config(4), inputs()).unwrap();
    let before = trainer.checkpoint().unwrap();
    let error = trainer.resume(&checkpoint).unwrap_err().to_string();
    assert!(
        error.contains("step 2") && error.contains("another kind of device than a CPU"),
        "{error}"
    );
    assert!(before.model == trainer.checkpoint().unwrap().model);
}

#[test]
fn a_truncated_line_of_the_log_is_written_again() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(4);
    advance(&folder.path().join("whole"), &config, 4, 0);
    let truncated = folder.path().join("truncated");
    advance(&truncated, &config, 2, 0);
    let log = truncated.join("metrics.jsonl");
    let mut text = fs::read_to_string(&log).unwrap();
    text.push_str("{\"step\":3,\"loss\":0.");
    fs::write(&log, text).unwrap();
    advance(&truncated, &config, 4, 0);
    assert_same_outcome(&folder.path().join("whole"), &truncated);
    assert_eq!(MetricsLog::read(&log).unwrap().len(), 4);
}

#[test]
fn a_run_without_checkpoints_is_not_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    advance(folder.path(), &config(4), 4, 0);
    fs::remove_dir_all(folder.path().join("checkpoints")).unwrap();
    fs::write(folder.path().join("config.toml"), "old").unwrap();
    fs::write(folder.path().join("a user's notes"), "").unwrap();
    fs::create_dir(folder.path().join("samples")).unwrap();
    fs::write(folder.path().join("samples/1.png"), "png").unwrap();
    let log = fs::read(folder.path().join("metrics.jsonl")).unwrap();
    let run = Run::open(folder.path(), &config(4), inputs()).unwrap();
    assert_eq!(run.resumed_from(), 0);
    let before = folder.path().join("before/1");
    assert_eq!(fs::read(before.join("metrics.jsonl")).unwrap(), log);
    assert!(before.join("config.toml").exists() && before.join("samples/1.png").exists());
    assert!(training::EventLog::path_in(&before).exists());
    assert!(folder.path().join("a user's notes").exists());
    drop(run);
    // A run without a logged step has nothing worth keeping.
    drop(Run::open(folder.path(), &config(4), inputs()).unwrap());
    assert!(!folder.path().join("before/2").exists());
}
