//! Evaluations during a run.

use std::path::Path;

use data::Loader;
use metrics::figures::{Figure, Figures};
use tch::{Device, Kind};
use training::{Config, DeviceBatch, MetricsLog, Run, TrainError, Trainer, checkpoint};

use crate::runs::{assert_same_outcome, config, dataset, inputs, tokens};

/// Trains with evaluations, whose figure is the sum of the averaged weights. The evaluation at the step `interrupted`
/// is interrupted, and the run ends there.
fn evaluate_until(folder: &Path, config: &Config, interrupted: Option<u64>) {
    let mut run = Run::open(folder, config, inputs()).unwrap();
    let checkpoints = folder.join("checkpoints");
    let quality = |trainer: &Trainer| {
        let step = trainer.steps_done();
        // An evaluation may take hours, so the steps before it must have been saved.
        let saved = checkpoint::list(&checkpoints).unwrap().pop().unwrap();
        assert!(saved.ends_with(format!("step-{step:07}")));
        if interrupted == Some(step) {
            return Err(TrainError::Interrupted);
        }
        let weights = trainer.average().state_dict();
        let sum = weights.iter().map(|(_, tensor)| tensor.sum(Kind::Double));
        let sum = sum.map(|sum| sum.double_value(&[])).sum();
        Ok(Figures::from([(Figure::Fd, sum)]))
    };
    run.evaluate(quality).unwrap();
    let loader = Loader::new(dataset(), config.loader(), run.trainer().cursor()).unwrap();
    for batch in loader {
        if run.is_finished() {
            break;
        }
        let batch = DeviceBatch::new(batch.unwrap(), Device::Cpu).unwrap();
        let tokens = tokens(&batch);
        if run.step_and_evaluate(&batch, &[tokens], quality).is_err() {
            assert!(run.evaluation_is_due());
            return;
        }
    }
    assert!(!run.evaluation_is_due());
}

#[test]
fn an_interrupted_evaluation_is_repeated_when_the_run_resumes() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(8);
    config.evaluate.every = 4;
    config.evaluate.fd_encoder = "hog".to_owned();
    config.sample.count = 4;
    config.train.checkpoint_every = 100;
    // With a log line at each step, and with lines only for the evaluations.
    for log_every in [1, 100] {
        config.train.log_every = log_every;
        let place = |name: &str| folder.path().join(format!("{name}-{log_every}"));
        evaluate_until(&place("whole"), &config, None);
        for interrupted in [4, 8] {
            let part = place(&format!("interrupted-at-{interrupted}"));
            evaluate_until(&part, &config, Some(interrupted));
            let last = MetricsLog::read(&part.join("metrics.jsonl")).unwrap().pop();
            let last = last.unwrap();
            assert_eq!((last.step, last.get(Figure::Fd)), (interrupted, None));
            evaluate_until(&part, &config, None);
            assert_same_outcome(&part, &place("whole"));
        }
        let lines = MetricsLog::read(&place("whole").join("metrics.jsonl")).unwrap();
        let evaluated = lines.iter().filter(|line| line.get(Figure::Fd).is_some());
        let steps: Vec<u64> = evaluated.map(|line| line.step).collect();
        assert_eq!(steps, [4, 8]);
        assert_eq!(lines.len(), if log_every == 1 { 8 } else { 2 });
    }
}

#[test]
fn an_evaluation_that_measures_nothing_leaves_no_line() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(4);
    config.evaluate.every = 2;
    config.evaluate.fd_encoder = "hog".to_owned();
    config.sample.count = 4;
    config.train.log_every = 3;
    let run = &mut Run::open(folder.path(), &config, inputs()).unwrap();
    let loader = Loader::new(dataset(), config.loader(), run.trainer().cursor()).unwrap();
    for batch in loader.take(4) {
        let batch = DeviceBatch::new(batch.unwrap(), Device::Cpu).unwrap();
        let tokens = tokens(&batch);
        let nothing = |_: &Trainer| Ok::<_, TrainError>(Figures::default());
        run.step_and_evaluate(&batch, &[tokens], nothing).unwrap();
    }
    let lines = MetricsLog::read(&folder.path().join("metrics.jsonl")).unwrap();
    let steps: Vec<u64> = lines.iter().map(|line| line.step).collect();
    assert_eq!(steps, [3, 4]);
}
