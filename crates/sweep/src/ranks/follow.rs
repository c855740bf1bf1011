//! The ranks besides rank 0.

use training::{Inputs, Trainer};

use super::Ranks;
use crate::context::Context;
use crate::failure::Reason;
use crate::latent_source::LatentSource;
use crate::planned::Planned;
use crate::prefetch::{PreparedBatch, open_stream};
use crate::token_source::TokenSource;

/// Trains a cell together with rank 0, which writes its files. Returns when it is trained or all ranks were interrupted.
pub(crate) fn follow(context: &Context, planned: &Planned, ranks: &Ranks) -> Result<(), Reason> {
    let config = &planned.cell.config;
    let tokens = TokenSource::open(context.bank, config, planned.training.as_ref())?;
    let latents = LatentSource::open(context.bank, config, planned.training.as_ref())?;
    let inputs = Inputs {
        device: context.device,
        num_classes: planned.training.class_names().len() as i64,
        encoders: tokens.shapes(),
        identity: planned.identity.clone(),
    };
    let mut trainer = Trainer::new(config, inputs)?;
    trainer.distribute(ranks.training_group(context.device)?)?;
    let start = trainer.steps_done();
    if start >= config.train.steps || !ranks.wait_to_go(start)? {
        return Ok(());
    }
    let mut batches = open_stream(context, planned, (tokens, latents), trainer.cursor())?;
    loop {
        let step = trainer.steps_done();
        if step >= config.train.steps {
            break;
        }
        // After an evaluation, rank 0 alone decides.
        let stops = match step > start && config.evaluate.is_due(step) {
            true => !ranks.wait_to_go(step)?,
            false => trainer.stop_after().is_some_and(|last| step >= last),
        };
        if stops {
            break;
        }
        if context.is_interrupted() {
            trainer.ask_to_stop();
        }
        let another = step + 1 < config.train.steps;
        let Some(PreparedBatch { batch, tokens }) = batches.next(another)? else {
            break;
        };
        trainer.step(&batch, &tokens)?;
    }
    batches.finish()?;
    // The figures of the last step may show that it failed.
    trainer.finish_step()?;
    Ok(())
}
