//! Alignment through a frozen denoiser, and the denoiser's training pass.

use alignment::SpatialNorm;
use diffusion::objective::velocity::Velocity;
use diffusion::repa_e::Statistics;
use diffusion::{Denoiser, Mode, SitConfig, drop_labels};
use tch::Tensor;

use super::{Model, head_name, sit_config, state};
use crate::golden::Golden;
use crate::terms;

/// The alignment loss without a coefficient.
pub fn cosine(targets: &[Tensor], projected: &[Tensor]) -> Tensor {
    let output = terms::compare(SpatialNorm::None, 1.0, targets, projected);
    output.unwrap().total
}

struct Inputs {
    x: Tensor,
    t: Tensor,
    noise: Tensor,
    labels: Tensor,
    targets: Vec<Tensor>,
}

impl Inputs {
    fn read(golden: &Golden) -> Self {
        Self {
            x: golden.tensor("in.x").set_requires_grad(true),
            t: golden.tensor("in.time").flatten(0, -1),
            noise: golden.tensor("in.noise"),
            labels: golden.tensor("in.y"),
            targets: ["in.zs.0", "in.zs.1"].map(|key| golden.tensor(key)).into(),
        }
    }
}

fn check_gradients(golden: &Golden, model: &Model, reached: impl Fn(&str) -> bool) {
    let names = golden.weights().into_iter().map(|(name, _)| name);
    for name in names.filter(|name| !name.starts_with("bn.")) {
        let gradient = state(&model.params, &head_name(&name)).grad();
        assert_eq!(gradient.defined(), reached(&name), "{name}");
        if gradient.defined() {
            golden.check(&format!("grad.{name}"), &gradient);
        }
    }
}

fn check_statistics(golden: &Golden, model: &Model) {
    for name in ["running_mean", "running_var", "num_batches_tracked"] {
        let name = format!("bn.{name}");
        golden.check(&format!("out.{name}"), &state(&model.params, &name));
    }
}

#[test]
fn the_gradient_of_alignment_at_the_latents_follows_upstream() {
    alignment("repae/repae_sit_align_small");
}

#[test]
#[ignore = "its data is not in the repository; IREPA_GOLDEN names a folder that contains it"]
fn the_gradient_of_alignment_through_a_larger_model_follows_upstream() {
    alignment("repae/repae_sit_align");
}

fn alignment(case: &str) {
    let golden = Golden::open(case);
    let net = golden.config("net");
    let config = sit_config(net);
    let depth = net["encoder_depth"].as_i64().unwrap();
    let model = Model::new(net, &config, &golden.weights());
    let input = Inputs::read(&golden);

    let x0 = model
        .latent_norm
        .forward(&input.x, Statistics::Running)
        .unwrap();
    let noisy = Velocity::default()
        .add_noise(&x0, &input.t, &input.noise)
        .unwrap();
    let hidden = model
        .sit
        .hidden(&noisy.x, &noisy.t, &input.labels, &[depth], Mode::Eval)
        .unwrap();
    let project = |hidden: &[Tensor]| -> Vec<Tensor> {
        let heads = model.heads.iter();
        heads
            .map(|head| head.forward(&hidden[0]).unwrap())
            .collect()
    };
    let projected = project(&hidden);
    let alignment = cosine(&input.targets, &projected);
    let loss = &alignment * golden.config("proj_coeff").as_f64().unwrap();
    loss.backward();

    golden.check("out.normalized_x", &x0);
    golden.check("out.model_input", &noisy.x);
    golden.check("out.zs_tilde.0", &projected[0]);
    golden.check("out.zs_tilde.1", &projected[1]);
    golden.check("out.proj_loss", &alignment);
    golden.check("out.loss", &loss);
    let table = state(&model.params, "y_embedder.embedding_table.weight");
    golden.check("out.y_embed", &table.index_select(0, &input.labels));
    check_statistics(&golden, &model);
    golden.check("grad.in.x", &input.x.grad());
    check_gradients(&golden, &model, |name| {
        !name.starts_with("final_layer") && !name.starts_with("blocks.2")
    });

    let output = model
        .sit
        .forward(&noisy.x, &noisy.t, &input.labels, &[depth], Mode::Eval)
        .unwrap();
    assert_eq!(output.hidden, hidden);
    let denoising = Velocity::default()
        .loss(&output.prediction, &noisy)
        .unwrap();
    golden.check("out.full.model_output", &output.prediction);
    golden.check("out.full.denoising_loss", &denoising);
    let alignment = cosine(&input.targets, &project(&output.hidden));
    golden.check("out.full.proj_loss", &alignment);

    // Upstream's `model_output` of this pass is the final layer applied to the hidden tokens, which is the
    // prediction of a model that ends at the alignment depth.
    let short = SitConfig { depth, ..config };
    let mut weights = golden.weights();
    weights.retain(|(name, _)| !name.starts_with("blocks.2"));
    let short = Model::new(net, &short, &weights);
    let output = short
        .sit
        .forward(&noisy.x, &noisy.t, &input.labels, &[], Mode::Eval);
    golden.check("out.model_output", &output.unwrap().prediction);
}

#[test]
fn the_denoisers_pass_and_all_its_gradients_follow_upstream() {
    training("repae/repae_sit_train_small");
}

#[test]
#[ignore = "its data is not in the repository; IREPA_GOLDEN names a folder that contains it"]
fn a_larger_denoisers_pass_and_all_its_gradients_follow_upstream() {
    training("repae/repae_sit_train");
}

fn training(case: &str) {
    let golden = Golden::open(case);
    let net = golden.config("net");
    let config = sit_config(net);
    let depth = net["encoder_depth"].as_i64().unwrap();
    let model = Model::new(net, &config, &golden.weights());
    let input = Inputs::read(&golden);
    let draws = golden.tensor("in.drop_uniform");
    let null_class = model.sit.dimensions().null_class.unwrap();
    let labels = drop_labels(&input.labels, &draws, config.class_dropout, null_class).unwrap();

    let x0 = model
        .latent_norm
        .forward(&input.x, Statistics::Batch)
        .unwrap();
    let noisy = Velocity::default()
        .add_noise(&x0, &input.t, &input.noise)
        .unwrap();
    let output = model
        .sit
        .forward(&noisy.x, &noisy.t, &labels, &[depth], Mode::Eval)
        .unwrap();
    let denoising = Velocity::default()
        .loss(&output.prediction, &noisy)
        .unwrap();
    let projected: Vec<Tensor> = model
        .heads
        .iter()
        .map(|head| head.forward(&output.hidden[0]).unwrap())
        .collect();
    let alignment = cosine(&input.targets, &projected);
    let coefficient = golden.config("proj_coeff").as_f64().unwrap();
    let loss = denoising.mean(None) + &alignment * coefficient;
    loss.backward();

    golden.check("out.normalized_x", &x0);
    golden.check("out.model_input", &noisy.x);
    golden.check("out.model_output", &output.prediction);
    golden.check("out.denoising_loss", &denoising);
    golden.check("out.zs_tilde.0", &projected[0]);
    golden.check("out.zs_tilde.1", &projected[1]);
    golden.check("out.proj_loss", &alignment);
    golden.check("out.loss", &loss);
    let table = state(&model.params, "y_embedder.embedding_table.weight");
    golden.check("out.y_embed", &table.index_select(0, &labels));
    check_statistics(&golden, &model);
    golden.check("grad.in.x", &input.x.grad());
    check_gradients(&golden, &model, |_| true);
}

#[test]
fn the_position_embedding_is_trained_only_if_configured() {
    use torch_ext::Params;
    let build = |train_pos_embed| {
        let config = SitConfig {
            train_pos_embed,
            ..crate::sit::tiny()
        };
        let params = Params::new(tch::Device::Cpu, 0).unwrap();
        diffusion::Sit::new(&params.root(), &config).unwrap();
        params
    };
    let (fixed, trained) = (build(false), build(true));
    assert_eq!(state(&fixed, "pos_embed"), state(&trained, "pos_embed"));
    assert!(!state(&fixed, "pos_embed").requires_grad());
    assert!(state(&trained, "pos_embed").requires_grad());
    assert_eq!(trained.trainable().len(), fixed.trainable().len() + 1);
    // All other weights are the same.
    let (fixed, trained) = (fixed.state_dict(), trained.state_dict());
    assert_eq!(fixed, trained);
}
