//! Batches with their latents and tokens, made one ahead of the trainers.

use std::any::Any;
use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};

use data::Loader;
use tch::{Device, Tensor};
use torch_ext::TorchError;
use torch_ext::stream::{Event, Stream};
use training::DeviceBatch;

use crate::failure::Reason;
use crate::latent_source::LatentSource;
use crate::token_source::TokenSource;

/// A batch and each encoder's patch tokens of it, `[B, T, D]`.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) batch: DeviceBatch,
    pub(crate) tokens: Vec<Tensor>,
}

impl Prepared {
    fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        let DeviceBatch {
            images,
            moments,
            labels,
            ..
        } = &self.batch;
        [images, labels]
            .into_iter()
            .chain(moments)
            .chain(&self.tokens)
    }
}

/// What makes the batches of a cohort.
pub(crate) trait Source: Send + 'static {
    /// The next batch; `None` at the end of the stream.
    fn prepare(&mut self) -> Result<Option<Prepared>, Reason>;
}

/// The data stream, and what the frozen networks or their caches say about its images.
pub(crate) struct Sources {
    pub(crate) loader: Loader,
    pub(crate) latents: LatentSource,
    pub(crate) tokens: TokenSource,
    pub(crate) device: Device,
}

impl Sources {
    /// Whether a thread that makes the batches gains time.
    ///
    /// On CUDA it only queues work, on a stream of its own. On the CPU each thread that computes has a
    /// team of libtorch's threads: where the trainers' already occupies the cores, a second one takes from it
    /// what it gains, and more (docs/results/cohort.md). Reading a cache is mostly waiting.
    pub(crate) fn gain_by_a_thread(&self) -> bool {
        if self.device.is_cuda() || !(self.latents.computes() || self.tokens.computes()) {
            return true;
        }
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let team = usize::try_from(tch::get_num_threads()).unwrap_or(cores);
        2 * team <= cores
    }
}

impl Source for Sources {
    fn prepare(&mut self) -> Result<Option<Prepared>, Reason> {
        let Some(batch) = self.loader.next() else {
            return Ok(None);
        };
        let mut batch = DeviceBatch::new(batch?, self.device)?;
        batch.moments = self.latents.moments(&batch)?;
        let tokens = self.tokens.tokens(&batch)?;
        Ok(Some(Prepared { batch, tokens }))
    }
}

/// A panic in a library is an error like others: it fails the cells that wanted the batch.
fn caught(source: &mut impl Source) -> Result<Option<Prepared>, Reason> {
    panic::catch_unwind(AssertUnwindSafe(|| source.prepare()))
        .unwrap_or_else(|panic| Err(panicked(panic.as_ref())))
}

fn panicked(panic: &(dyn Any + Send)) -> Reason {
    let said = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message");
    Reason(format!("making a batch panicked: {said}"))
}

/// Hands out the batches of a [`Source`] in order: made when they are asked for, or one ahead, in a thread
/// of its own and on CUDA on a stream of its own. Dropping it waits for the batch in the making.
pub(crate) struct Prefetcher<S: Source> {
    /// `None` once it has been given back.
    making: Option<Making<S>>,
}

enum Making<S> {
    Here(S),
    Ahead(Ahead<S>),
}

impl<S: Source> Prefetcher<S> {
    /// Takes over `source`, whose tensors are on `device`; `ahead` chooses the thread.
    ///
    /// # Errors
    /// No thread or stream can be had.
    pub(crate) fn new(source: S, device: Device, ahead: bool) -> Result<Self, Reason> {
        let making = match ahead {
            false => Making::Here(source),
            true => Making::Ahead(Ahead::start(source, device)?),
        };
        Ok(Self {
            making: Some(making),
        })
    }

    /// The next batch. With `another`, the one after it may be made meanwhile.
    ///
    /// # Errors
    /// Those of making this batch, also where it was made ahead.
    pub(crate) fn next(&mut self, another: bool) -> Result<Option<Prepared>, Reason> {
        match &mut self.making {
            Some(Making::Here(source)) => caught(source),
            Some(Making::Ahead(ahead)) => ahead.next(another),
            None => Err(ended()),
        }
    }

    /// Ends the thread and gives the source back.
    ///
    /// # Errors
    /// The device failed.
    pub(crate) fn finish(mut self) -> Result<S, Reason> {
        match self.making.take() {
            Some(Making::Here(source)) => Ok(source),
            Some(Making::Ahead(ahead)) => ahead.finish(),
            None => Err(ended()),
        }
    }
}

impl<S: Source> Drop for Prefetcher<S> {
    fn drop(&mut self) {
        if let Some(Making::Ahead(ahead)) = self.making.take()
            && let Err(Reason(error)) = ahead.finish()
        {
            tracing::debug!("the thread that makes batches: {error}");
        }
    }
}

/// A batch on its way, and when it is there.
type Made = Result<Option<(Prepared, Event)>, Reason>;

/// A thread that makes a batch each time it is told to.
struct Ahead<S> {
    orders: Sender<()>,
    made: Receiver<Made>,
    thread: JoinHandle<S>,
    /// Whether a batch was ordered that was not taken yet.
    ordered: bool,
    /// Where batches are made, and where they are used.
    own: Stream,
    trainers: Stream,
}

impl<S: Source> Ahead<S> {
    fn start(mut source: S, device: Device) -> Result<Self, Reason> {
        let (own, trainers) = (Stream::from_pool(device)?, Stream::current(device)?);
        // The networks were loaded there.
        own.wait(&trainers.record()?)?;
        let (orders, ordered) = mpsc::channel::<()>();
        let (send, made) = mpsc::channel();
        let thread = thread::Builder::new()
            .name("batches".to_owned())
            .spawn(move || {
                let entered = own.enter();
                for () in ordered {
                    let batch = match &entered {
                        Ok(_) => caught(&mut source).and_then(|batch| with_event(batch, own)),
                        Err(error) => Err(Reason(error.to_string())),
                    };
                    if send.send(batch).is_err() {
                        break;
                    }
                }
                source
            })
            .map_err(|error: io::Error| Reason(format!("no thread to make batches: {error}")))?;
        Ok(Self {
            orders,
            made,
            thread,
            ordered: false,
            own,
            trainers,
        })
    }

    fn next(&mut self, another: bool) -> Result<Option<Prepared>, Reason> {
        if !self.ordered {
            self.order()?;
        }
        self.ordered = false;
        let Some((batch, event)) = self.made.recv().map_err(|_| ended())?? else {
            return Ok(None);
        };
        if another {
            self.order()?;
        }
        self.trainers.wait(&event)?;
        for tensor in batch.tensors() {
            self.trainers.keep(tensor)?;
        }
        Ok(Some(batch))
    }

    fn order(&mut self) -> Result<(), Reason> {
        self.orders.send(()).map_err(|_| ended())?;
        self.ordered = true;
        Ok(())
    }

    fn finish(self) -> Result<S, Reason> {
        let Self {
            orders,
            made,
            thread,
            own,
            trainers,
            ..
        } = self;
        drop(orders);
        let source = thread.join().map_err(|panic| panicked(panic.as_ref()))?;
        // The networks may be freed, or used there, once a batch that nobody took is done.
        trainers.wait(&own.record()?)?;
        drop(made);
        Ok(source)
    }
}

fn with_event(batch: Option<Prepared>, own: Stream) -> Made {
    let with = |batch| Ok::<_, TorchError>((batch, own.record()?));
    Ok(batch.map(with).transpose()?)
}

/// The thread is gone, which it never is while this side holds its ends.
fn ended() -> Reason {
    Reason("the thread that makes batches has ended".to_owned())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tch::Kind;

    use super::*;

    /// Batches that say which they are, some of which cannot be made.
    struct Counting {
        made: Arc<AtomicUsize>,
        dropped: Arc<AtomicUsize>,
        fails_at: usize,
        panics_at: usize,
        ends_at: usize,
    }

    impl Source for Counting {
        fn prepare(&mut self) -> Result<Option<Prepared>, Reason> {
            let index = self.made.fetch_add(1, Ordering::SeqCst);
            assert_ne!(index, self.panics_at, "this batch panics");
            if index == self.fails_at {
                return Err(Reason("this batch fails".to_owned()));
            }
            if index == self.ends_at {
                return Ok(None);
            }
            let number = Tensor::from_slice(&[index as i64]);
            Ok(Some(Prepared {
                tokens: vec![&number * 10],
                batch: DeviceBatch {
                    images: number.to_kind(Kind::Uint8),
                    moments: None,
                    labels: number,
                    ids: vec![index as u64],
                    flipped: vec![false],
                    cursor: data::Cursor {
                        seen: index as u64 + 1,
                        ..data::Cursor::default()
                    },
                },
            }))
        }
    }

    impl Drop for Counting {
        fn drop(&mut self) {
            self.dropped.fetch_add(1, Ordering::SeqCst);
        }
    }

    const NEVER: usize = usize::MAX;

    impl Counting {
        fn new() -> Self {
            Self {
                made: Arc::default(),
                dropped: Arc::default(),
                fails_at: NEVER,
                panics_at: NEVER,
                ends_at: NEVER,
            }
        }

        fn prefetch(self, ahead: bool) -> Prefetcher<Self> {
            Prefetcher::new(self, Device::Cpu, ahead).unwrap()
        }
    }

    #[test]
    fn batches_come_in_order_and_none_is_made_that_was_not_wanted() {
        for ahead in [false, true] {
            let source = Counting::new();
            let made = Arc::clone(&source.made);
            let mut batches = source.prefetch(ahead);
            for index in 0..5 {
                let Prepared { batch, tokens } = batches.next(index < 4).unwrap().unwrap();
                assert_eq!(batch.ids, [index]);
                // Where the stream stands after this batch, not after the one made ahead.
                assert_eq!(batch.cursor.seen, index + 1);
                assert_eq!(tokens, [Tensor::from_slice(&[10 * index as i64])]);
            }
            let source = batches.finish().unwrap();
            assert_eq!(made.load(Ordering::SeqCst), 5, "ahead: {ahead}");
            // It goes on where it stood.
            let mut batches = source.prefetch(!ahead);
            assert_eq!(batches.next(false).unwrap().unwrap().batch.ids, [5]);
        }
    }

    #[test]
    fn the_next_batch_is_made_while_this_one_is_used() {
        let source = Counting::new();
        let made = Arc::clone(&source.made);
        let mut batches = source.prefetch(true);
        let _first = batches.next(true).unwrap().unwrap();
        while made.load(Ordering::SeqCst) < 2 {
            thread::yield_now();
        }
        // One ahead, and no more, until that one is taken.
        drop(batches);
        assert_eq!(made.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn an_error_and_a_panic_arrive_in_the_place_of_their_batch() {
        for ahead in [false, true] {
            for (fails_at, panics_at, said) in [
                (2, NEVER, "this batch fails"),
                (NEVER, 2, "making a batch panicked"),
            ] {
                let mut source = Counting::new();
                (source.fails_at, source.panics_at) = (fails_at, panics_at);
                let dropped = Arc::clone(&source.dropped);
                let mut batches = source.prefetch(ahead);
                for index in 0..2 {
                    let prepared = batches.next(true).unwrap().unwrap();
                    assert_eq!(prepared.batch.ids, [index]);
                }
                let Err(Reason(found)) = batches.next(true) else {
                    panic!("batch 2 was made");
                };
                assert!(found.contains(said), "{found}");
                assert!(
                    panics_at == NEVER || found.contains("this batch panics"),
                    "{found}"
                );
                drop(batches);
                assert_eq!(dropped.load(Ordering::SeqCst), 1);
            }
        }
    }

    #[test]
    fn the_end_of_the_stream_is_its_end_ahead_too() {
        for ahead in [false, true] {
            let mut source = Counting::new();
            source.ends_at = 1;
            let mut batches = source.prefetch(ahead);
            assert!(batches.next(true).unwrap().is_some());
            assert!(batches.next(true).unwrap().is_none());
        }
    }

    #[test]
    fn dropping_it_ends_the_thread_with_a_batch_on_its_way() {
        let source = Counting::new();
        let dropped = Arc::clone(&source.dropped);
        let mut batches = source.prefetch(true);
        drop(batches.next(true).unwrap());
        drop(batches);
        // The thread gave it back.
        assert_eq!(dropped.load(Ordering::SeqCst), 1);
    }
}
