//! Makes batches with their latents and tokens, one batch ahead of the trainers if requested.

use std::any::Any;
use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};

use data::{Cursor, Loader};
use encoders::feature_cache::FeatureCache;
use tch::{Device, Tensor};
use torch_ext::TorchError;
use torch_ext::stream::{Event, Stream};
use training::DeviceBatch;

use crate::context::Context;
use crate::failure::Reason;
use crate::latent_source::LatentSource;
use crate::planned::Planned;
use crate::token_source::TokenSource;

/// A batch, and the patch tokens `[B, T, D]` of each encoder.
#[derive(Debug)]
pub(crate) struct PreparedBatch {
    pub(crate) batch: DeviceBatch,
    pub(crate) tokens: Vec<Tensor>,
}

impl PreparedBatch {
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

/// Makes the batches of a cohort in order.
pub(crate) trait BatchSource: Send + 'static {
    /// The next batch; `None` at the end of the stream.
    fn next_batch(&mut self) -> Result<Option<PreparedBatch>, Reason>;
}

/// Makes batches from the data stream, with the latents and tokens of the frozen networks or their caches.
pub(crate) struct BatchMaker {
    pub(crate) loader: Loader,
    pub(crate) latents: LatentSource,
    pub(crate) tokens: TokenSource,
    pub(crate) device: Device,
}

impl BatchMaker {
    /// Whether making batches in a separate thread saves time.
    ///
    /// On CUDA the thread only queues work, on its own stream. On the CPU each thread that computes has its own pool of
    /// libtorch threads. If the pool of the trainers already occupies the cores, a second pool slows them down by more
    /// than it gains (docs/results/cohort.md). Reading a cache mostly waits for the disk, so a thread saves time.
    pub(crate) fn gains_from_thread(&self) -> bool {
        if self.device.is_cuda() || !(self.latents.computes() || self.tokens.computes()) {
            return true;
        }
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let pool = usize::try_from(tch::get_num_threads()).unwrap_or(cores);
        2 * pool <= cores
    }
}

impl BatchSource for BatchMaker {
    fn next_batch(&mut self) -> Result<Option<PreparedBatch>, Reason> {
        let Some(batch) = self.loader.next() else {
            return Ok(None);
        };
        let mut batch = DeviceBatch::new(batch?, self.device)?;
        batch.moments = self.latents.moments(&batch)?;
        let tokens = self.tokens.tokens(&batch)?;
        Ok(Some(PreparedBatch { batch, tokens }))
    }
}

/// Opens the stream of the batches of a cell's cohort from `cursor` on; among several ranks, of this one's rows.
pub(crate) fn open_stream(
    context: &Context,
    planned: &Planned,
    (tokens, latents): (TokenSource, LatentSource),
    cursor: Cursor,
) -> Result<Prefetcher<BatchMaker>, Reason> {
    let config = &planned.cell.config;
    let mut loader = Loader::new(Arc::clone(&planned.training), config.loader(), cursor)?;
    if let Some(ranks) = context.ranks {
        let rows = training::rows(&config.train, ranks.world())?;
        loader = loader.shared(rows, Box::new(ranks.peers()?))?;
    }
    // With latents and tokens in caches, images are not decoded.
    if let (Some(caches), Some(cache)) = (tokens.caches(), latents.cache()) {
        let caches = caches.into_iter().chain([cache]);
        loader = loader.without_images(caches.flat_map(FeatureCache::absent).collect())?;
    }
    let maker = BatchMaker {
        loader,
        latents,
        tokens,
        device: context.device,
    };
    let ahead = config.data.encode_ahead;
    let ahead = ahead.unwrap_or_else(|| maker.gains_from_thread());
    Prefetcher::new(maker, context.device, ahead)
}

/// Makes the next batch and turns a panic into an error, so that it fails only the cells that need the batch.
fn next_caught(source: &mut impl BatchSource) -> Result<Option<PreparedBatch>, Reason> {
    panic::catch_unwind(AssertUnwindSafe(|| source.next_batch()))
        .unwrap_or_else(|panic| Err(panicked(panic.as_ref())))
}

fn panicked(panic: &(dyn Any + Send)) -> Reason {
    let message = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message");
    Reason(format!("making a batch panicked: {message}"))
}

/// Returns the batches of a [`BatchSource`] in order. A batch is made either when it is requested, or one batch ahead,
/// in a separate thread and on CUDA on a separate stream. Dropping the prefetcher waits for the batch that is being
/// made.
pub(crate) struct Prefetcher<S: BatchSource> {
    /// `None` after [`finish`](Self::finish).
    worker: Option<Worker<S>>,
}

enum Worker<S> {
    Inline(S),
    Thread(BatchThread<S>),
}

impl<S: BatchSource> Prefetcher<S> {
    /// Takes over `source`, whose tensors are on `device`. If `ahead`, batches are made in a separate thread.
    ///
    /// # Errors
    /// The thread or the stream cannot be created.
    pub(crate) fn new(source: S, device: Device, ahead: bool) -> Result<Self, Reason> {
        let worker = match ahead {
            false => Worker::Inline(source),
            true => Worker::Thread(BatchThread::start(source, device)?),
        };
        Ok(Self {
            worker: Some(worker),
        })
    }

    /// The next batch. If `another`, the thread starts to make the batch after it.
    ///
    /// # Errors
    /// This batch cannot be made. The error of a batch that was made ahead is returned in its place.
    pub(crate) fn next(&mut self, another: bool) -> Result<Option<PreparedBatch>, Reason> {
        match &mut self.worker {
            Some(Worker::Inline(source)) => next_caught(source),
            Some(Worker::Thread(thread)) => thread.next(another),
            None => Err(ended()),
        }
    }

    /// Ends the thread and returns the source.
    ///
    /// # Errors
    /// The device failed.
    pub(crate) fn finish(mut self) -> Result<S, Reason> {
        match self.worker.take() {
            Some(Worker::Inline(source)) => Ok(source),
            Some(Worker::Thread(thread)) => thread.finish(),
            None => Err(ended()),
        }
    }
}

impl<S: BatchSource> Drop for Prefetcher<S> {
    fn drop(&mut self) {
        if let Some(Worker::Thread(thread)) = self.worker.take()
            && let Err(Reason(error)) = thread.finish()
        {
            tracing::debug!("the thread that makes batches: {error}");
        }
    }
}

/// A batch whose work is queued on the device, and the event that marks its completion.
type QueuedBatch = Result<Option<(PreparedBatch, Event)>, Reason>;

/// A thread that makes one batch per request.
struct BatchThread<S> {
    requests: Sender<()>,
    batches: Receiver<QueuedBatch>,
    thread: JoinHandle<S>,
    /// Whether a batch was requested and not taken yet.
    requested: bool,
    /// The stream on which batches are made.
    own: Stream,
    /// The stream on which batches are used.
    trainers: Stream,
}

impl<S: BatchSource> BatchThread<S> {
    fn start(mut source: S, device: Device) -> Result<Self, Reason> {
        let (own, trainers) = (Stream::from_pool(device)?, Stream::current(device)?);
        // The networks were loaded on the stream of the trainers.
        own.wait(&trainers.record()?)?;
        let (requests, received) = mpsc::channel::<()>();
        let (send, batches) = mpsc::channel();
        let thread = thread::Builder::new()
            .name("batches".to_owned())
            .spawn(move || {
                let entered = own.enter();
                for () in received {
                    let batch = match &entered {
                        Ok(_) => next_caught(&mut source).and_then(|batch| with_event(batch, own)),
                        Err(error) => Err(Reason(error.to_string())),
                    };
                    if send.send(batch).is_err() {
                        break;
                    }
                }
                source
            })
            .map_err(|error: io::Error| {
                Reason(format!(
                    "cannot start the thread that makes batches: {error}"
                ))
            })?;
        Ok(Self {
            requests,
            batches,
            thread,
            requested: false,
            own,
            trainers,
        })
    }

    fn next(&mut self, another: bool) -> Result<Option<PreparedBatch>, Reason> {
        if !self.requested {
            self.request()?;
        }
        self.requested = false;
        let Some((batch, event)) = self.batches.recv().map_err(|_| ended())?? else {
            return Ok(None);
        };
        if another {
            self.request()?;
        }
        self.trainers.wait(&event)?;
        for tensor in batch.tensors() {
            self.trainers.keep(tensor)?;
        }
        Ok(Some(batch))
    }

    fn request(&mut self) -> Result<(), Reason> {
        self.requests.send(()).map_err(|_| ended())?;
        self.requested = true;
        Ok(())
    }

    fn finish(self) -> Result<S, Reason> {
        let Self {
            requests,
            batches,
            thread,
            own,
            trainers,
            ..
        } = self;
        drop(requests);
        let source = thread.join().map_err(|panic| panicked(panic.as_ref()))?;
        // After this wait, the trainers' stream may use or free the networks, even if a batch was never taken.
        trainers.wait(&own.record()?)?;
        drop(batches);
        Ok(source)
    }
}

fn with_event(batch: Option<PreparedBatch>, own: Stream) -> QueuedBatch {
    let with = |batch| Ok::<_, TorchError>((batch, own.record()?));
    Ok(batch.map(with).transpose()?)
}

/// The error if the thread has ended. It does not end while this side holds the channels.
fn ended() -> Reason {
    Reason("the thread that makes batches has ended".to_owned())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tch::Kind;

    use super::*;

    /// A source whose batches contain their index, and which can fail, panic or end at a given index.
    struct Counting {
        made: Arc<AtomicUsize>,
        dropped: Arc<AtomicUsize>,
        fails_at: usize,
        panics_at: usize,
        ends_at: usize,
    }

    impl BatchSource for Counting {
        fn next_batch(&mut self) -> Result<Option<PreparedBatch>, Reason> {
            let index = self.made.fetch_add(1, Ordering::SeqCst);
            assert_ne!(index, self.panics_at, "this batch panics");
            if index == self.fails_at {
                return Err(Reason("this batch fails".to_owned()));
            }
            if index == self.ends_at {
                return Ok(None);
            }
            let value = Tensor::from_slice(&[index as i64]);
            Ok(Some(PreparedBatch {
                tokens: vec![&value * 10],
                batch: DeviceBatch {
                    images: value.to_kind(Kind::Uint8),
                    moments: None,
                    labels: value,
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
    fn batches_come_in_order_and_none_is_made_without_a_request() {
        for ahead in [false, true] {
            let source = Counting::new();
            let made = Arc::clone(&source.made);
            let mut batches = source.prefetch(ahead);
            for index in 0..5 {
                let PreparedBatch { batch, tokens } = batches.next(index < 4).unwrap().unwrap();
                assert_eq!(batch.ids, [index]);
                // The position of the stream after this batch, not after the one made ahead.
                assert_eq!(batch.cursor.seen, index + 1);
                assert_eq!(tokens, [Tensor::from_slice(&[10 * index as i64])]);
            }
            let source = batches.finish().unwrap();
            assert_eq!(made.load(Ordering::SeqCst), 5, "ahead: {ahead}");
            // The source continues at its position.
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
        // Only one batch is made ahead until it is taken.
        drop(batches);
        assert_eq!(made.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn an_error_or_a_panic_is_returned_in_place_of_its_batch() {
        for ahead in [false, true] {
            for (fails_at, panics_at, expected) in [
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
                assert!(found.contains(expected), "{found}");
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
    fn the_stream_ends_in_the_same_place_with_and_without_a_thread() {
        for ahead in [false, true] {
            let mut source = Counting::new();
            source.ends_at = 1;
            let mut batches = source.prefetch(ahead);
            assert!(batches.next(true).unwrap().is_some());
            assert!(batches.next(true).unwrap().is_none());
        }
    }

    #[test]
    fn dropping_the_prefetcher_ends_the_thread_while_a_batch_is_made() {
        let source = Counting::new();
        let dropped = Arc::clone(&source.dropped);
        let mut batches = source.prefetch(true);
        drop(batches.next(true).unwrap());
        drop(batches);
        // The thread returned the source, which was dropped.
        assert_eq!(dropped.load(Ordering::SeqCst), 1);
    }
}
