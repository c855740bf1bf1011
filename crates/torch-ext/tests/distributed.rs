//! Stores, collective operations and reductions of several processes.
//!
//! Each test starts this program again, once for each rank, with its own name as the filter. In those processes, the
//! environment has a rank, and the test does the rank's part.

use std::net::TcpListener;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use tch::{Device, Kind, Tensor};
use torch_ext::Generator;
use torch_ext::distributed::{ProcessGroup, Reduce, Reducer, ReducerSettings, Store, World};

const TIMEOUT: Duration = Duration::from_secs(60);

/// Runs the test `name` in `size` processes, and returns their outputs.
fn run_ranks(name: &str, size: usize) -> Vec<Output> {
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let ranks: Vec<_> = (0..size)
        .map(|rank| {
            Command::new(std::env::current_exe().unwrap())
                .args([name, "--exact", "--nocapture"])
                .env("RANK", rank.to_string())
                .env("WORLD_SIZE", size.to_string())
                .env("LOCAL_RANK", rank.to_string())
                .env("MASTER_ADDR", "127.0.0.1")
                .env("MASTER_PORT", port.to_string())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    let outputs = ranks
        .into_iter()
        .map(|rank| rank.wait_with_output().unwrap());
    outputs.collect()
}

/// Runs `part` in 2 and in 4 processes, each with a store and a group.
fn on_ranks(name: &str, part: impl Fn(&Store, &ProcessGroup)) {
    if let Some(world) = World::from_env().unwrap() {
        let store = Store::connect(&world, TIMEOUT).unwrap();
        let group = ProcessGroup::gloo(&store, &world, "test", TIMEOUT).unwrap();
        part(&store, &group);
        // Rank 0 serves the store, so it leaves last.
        group.barrier().unwrap();
        println!("part done");
        return;
    }
    for size in [2, 4] {
        for (rank, output) in run_ranks(name, size).into_iter().enumerate() {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            let (out, err) = (text(&output.stdout), text(&output.stderr));
            assert!(
                output.status.success() && out.contains("part done"),
                "rank {rank} of {size}: {}\n{out}\n{err}",
                output.status
            );
        }
    }
}

fn floats(values: &[f32]) -> Tensor {
    Tensor::from_slice(values)
}

fn values(tensor: &Tensor) -> Vec<f32> {
    Vec::try_from(tensor.flatten(0, -1)).unwrap()
}

#[test]
fn all_ranks_see_the_keys_of_a_store() {
    on_ranks("all_ranks_see_the_keys_of_a_store", |store, group| {
        let World { rank, size, .. } = *group.world();
        if rank == 1 {
            store.set("from 1", b"hello\0there").unwrap();
        }
        assert_eq!(store.get("from 1").unwrap(), b"hello\0there");
        assert!(!store.contains("never").unwrap());
        assert!(store.contains("from 1").unwrap());
        store.set("empty", b"").unwrap();
        assert_eq!(store.get("empty").unwrap(), b"");
        // Every ticket is drawn once.
        let tickets: Vec<i64> = (0..5).map(|_| store.add("tickets", 1).unwrap()).collect();
        let mut all: Vec<i64> = group
            .all_gather(&Tensor::from_slice(&tickets))
            .unwrap()
            .iter()
            .flat_map(|tickets| Vec::<i64>::try_from(tickets).unwrap())
            .collect();
        all.sort_unstable();
        assert_eq!(all, (1..=5 * size as i64).collect::<Vec<_>>());
        let error = store.set("nul\0", b"").unwrap_err();
        assert!(error.to_string().contains("NUL"), "{error}");
    });
}

#[test]
fn collective_operations_combine_all_ranks() {
    on_ranks("collective_operations_combine_all_ranks", |_, group| {
        let World { rank, size, .. } = *group.world();
        let (own, count) = (rank as f32, size as f32);
        for (how, expected) in [
            (Reduce::Sum, [count * (count - 1.0) / 2.0, count]),
            (Reduce::Min, [0.0, 1.0]),
            (Reduce::Max, [count - 1.0, 1.0]),
        ] {
            let tensor = floats(&[own, 1.0]);
            group.all_reduce_(&tensor, how).unwrap();
            assert_eq!(values(&tensor), expected);
        }
        let half = Tensor::full([3], 0.5, (Kind::BFloat16, Device::Cpu));
        group.all_reduce_(&half, Reduce::Sum).unwrap();
        assert_eq!(values(&half.to_kind(Kind::Float)), [0.5 * count; 3]);

        let tensor = floats(&[own, -own]);
        group.broadcast_(&tensor, size - 1).unwrap();
        assert_eq!(values(&tensor), [count - 1.0, 1.0 - count]);

        let gathered = group.all_gather(&floats(&[own; 2])).unwrap();
        let gathered: Vec<_> = gathered.iter().map(values).collect();
        let expected: Vec<_> = (0..size).map(|rank| vec![rank as f32; 2]).collect();
        assert_eq!(gathered, expected);
    });
}

/// The weights of a network of `layers` products, the same in every process.
fn weights(layers: usize) -> Vec<Tensor> {
    let mut generator = Generator::new(Device::Cpu, 7).unwrap();
    let mut weight = || generator.randn(&[64, 64], Kind::Float).unwrap() / 8.0;
    (0..layers)
        .map(|_| weight().set_requires_grad(true))
        .collect()
}

fn loss(weights: &[Tensor], batch: &Tensor) -> Tensor {
    let output = weights
        .iter()
        .fold(batch.shallow_clone(), |x, weight| x.matmul(weight).tanh());
    output.square().mean(Kind::Float)
}

fn batch(rows: i64) -> Tensor {
    (Tensor::arange(rows * 64, (Kind::Float, Device::Cpu)).reshape([rows, 64]) * 0.37).cos()
}

#[test]
fn reduced_gradients_are_those_of_the_whole_batch() {
    on_ranks(
        "reduced_gradients_are_those_of_the_whole_batch",
        |_, group| {
            let World { rank, size, .. } = *group.world();
            let (whole, rows) = (weights(6), batch(8));
            loss(&whole, &rows).backward();
            let own = rows.size()[0] / size as i64;
            let part = rows.narrow(0, rank as i64 * own, own);
            for (dtype, errors) in [(None, 0.0..1e-5), (Some(Kind::BFloat16), 1e-4..2e-2)] {
                let share = weights(6);
                let settings = ReducerSettings {
                    // Two weights per bucket.
                    bucket_bytes: 2 * 64 * 64 * 4,
                    dtype,
                };
                let mut reducer: Option<Reducer> = None;
                let mut first: Option<Vec<Tensor>> = None;
                for _ in 0..3 {
                    torch_ext::optim::clear_grads(&share).unwrap();
                    let loss = loss(&share, &part);
                    let reducer = reducer.get_or_insert_with(|| {
                        Reducer::new(&share, &loss, group, settings).unwrap()
                    });
                    reducer.backward(&loss).unwrap();
                    let grads: Vec<_> = share.iter().map(|w| w.grad().copy()).collect();
                    // The first step has the bits of a later one.
                    assert_eq!(
                        *first.get_or_insert_with(|| grads.iter().map(Tensor::copy).collect()),
                        grads
                    );
                    for (whole, share) in whole.iter().zip(&share) {
                        let largest = |tensor: Tensor| f64::try_from(tensor.abs().max()).unwrap();
                        let scale = largest(whole.grad());
                        let error = largest(whole.grad() - share.grad()) / scale;
                        assert!(errors.contains(&error), "{dtype:?}: {error} of {scale}");
                    }
                }
                // All ranks have the same bits.
                let bits = share[0].grad().contiguous();
                let all = group.all_gather(&bits).unwrap();
                assert!(all.iter().all(|other| *other == bits));
            }
        },
    );
}

#[test]
fn a_weight_that_no_rank_uses_keeps_no_gradient() {
    on_ranks(
        "a_weight_that_no_rank_uses_keeps_no_gradient",
        |_, group| {
            let weights = weights(3);
            let settings = ReducerSettings::default();
            let mut reducer: Option<Reducer> = None;
            for _ in 0..2 {
                torch_ext::optim::clear_grads(&weights).unwrap();
                let loss = loss(&weights[..2], &batch(2));
                let reducer = reducer
                    .get_or_insert_with(|| Reducer::new(&weights, &loss, group, settings).unwrap());
                reducer.backward(&loss).unwrap();
                let defined: Vec<_> = weights
                    .iter()
                    .map(|weight| weight.grad().defined())
                    .collect();
                assert_eq!(defined, [true, true, false]);
            }
            let constant = [Tensor::zeros([2], (Kind::Float, Device::Cpu))];
            let error = Reducer::new(&constant, &constant[0], group, settings).unwrap_err();
            assert!(error.to_string().contains("not a leaf"), "{error}");
        },
    );
}

#[test]
fn a_rank_that_ends_is_an_error_on_the_others() {
    if let Some(world) = World::from_env().unwrap() {
        let store = Store::connect(&world, TIMEOUT).unwrap();
        let group = ProcessGroup::gloo(&store, &world, "test", TIMEOUT).unwrap();
        group.barrier().unwrap();
        if world.rank == 1 {
            std::process::abort();
        }
        let error = group.all_reduce_(&floats(&[1.0]), Reduce::Sum).unwrap_err();
        println!("said: {error}");
        return;
    }
    let outputs = run_ranks("a_rank_that_ends_is_an_error_on_the_others", 2);
    assert!(!outputs[1].status.success());
    let said = String::from_utf8_lossy(&outputs[0].stdout).into_owned();
    assert!(
        outputs[0].status.success()
            && said.contains("said: an all-reduce on rank 0 of 2: ")
            && said.contains("onnection"),
        "{said}"
    );
}

#[test]
fn a_rank_that_does_not_come_is_an_error_after_the_timeout() {
    if let Some(world) = World::from_env().unwrap() {
        let timeout = Duration::from_secs(2);
        let store = Store::connect(&world, TIMEOUT).unwrap();
        if world.rank == 0 {
            let error = ProcessGroup::gloo(&store, &world, "test", timeout).unwrap_err();
            println!("said: {error}");
            store.set("end", b"").unwrap();
        }
        store.get("end").unwrap();
        return;
    }
    let outputs = run_ranks("a_rank_that_does_not_come_is_an_error_after_the_timeout", 2);
    let said = String::from_utf8_lossy(&outputs[0].stdout).into_owned();
    assert!(
        said.contains("said: connecting to the other ranks on rank 0 of 2: "),
        "{said}"
    );
}

#[test]
fn libtorch_repeats_no_error_on_standard_error() {
    const NAME: &str = "libtorch_repeats_no_error_on_standard_error";
    if let Some(world) = World::from_env().unwrap() {
        let error = Store::connect(&world, Duration::from_millis(500)).unwrap_err();
        println!("said: {error}");
        return;
    }
    // Nothing listens at the port of the listener that has been dropped.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    drop(listener);
    let refused = |level: &str| {
        let output = Command::new(std::env::current_exe().unwrap())
            .args([NAME, "--exact", "--nocapture"])
            .envs([("RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "1")])
            .envs([("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", &port)])
            .env("TORCH_CPP_LOG_LEVEL", level)
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let out = text(&output.stdout);
        assert!(
            output.status.success() && out.contains("said: connecting to 127.0.0.1:"),
            "{out}"
        );
        assert!(!out.contains("frame #"), "{out}");
        text(&output.stderr)
    };
    assert_eq!(refused(""), "");
    assert!(refused("WARNING").contains("[c10d]"));
}

#[test]
fn ports_in_use_and_addresses_without_a_store_are_errors() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let world = |rank: &'static str, port: &str| {
        let variable = |name: &str| match name {
            "RANK" | "LOCAL_RANK" => Some(rank.to_owned()),
            "WORLD_SIZE" => Some("2".to_owned()),
            "MASTER_ADDR" => Some("127.0.0.1".to_owned()),
            "MASTER_PORT" => Some(port.to_owned()),
            _ => None,
        };
        World::from_variables(variable).unwrap().unwrap()
    };
    let error = Store::connect(&world("0", &port), Duration::from_secs(2)).unwrap_err();
    let message = error.to_string();
    assert!(
        message.starts_with(&format!(
            "serving the store at 127.0.0.1:{port} on rank 0 of 2: "
        )) && message.contains("use"),
        "{message}"
    );
    drop(listener);
    let error = Store::connect(&world("1", &port), Duration::from_secs(2)).unwrap_err();
    let message = error.to_string();
    assert!(
        message.starts_with(&format!("connecting to 127.0.0.1:{port} on rank 1 of 2: ")),
        "{message}"
    );
}
