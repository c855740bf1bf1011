//! Two whole training steps, compared with upstream.

use std::collections::HashMap;

use diffusion::autoencoder::{KlAutoencoder, KlConfig};
use diffusion::latents::LatentScaling;
use diffusion::objective::velocity::Velocity;
use diffusion::repa_e::{
    AutoencoderLoss, AutoencoderLossConfig, LatentNorm, RandomInputs, RepaE, RepaEConfig,
};
use diffusion::{Denoiser, DiffusionError, Mode, Sit, drop_labels};
use serde_json::Value;
use tch::{Device, Kind, Tensor};
use torch_ext::{Params, optim};

use super::sit::cosine;
use super::{Model, below, discriminator, head_name, integers, lpips, sit_config, state};
use crate::golden::Golden;

/// AdamW over one network, with clipping.
struct Optimizer {
    params: Vec<Tensor>,
    exp_avgs: Vec<Tensor>,
    exp_avg_sqs: Vec<Tensor>,
    settings: optim::AdamW,
    max_norm: f64,
    steps: i64,
}

impl Optimizer {
    fn new(params: &Params, args: &Value, lr: &str) -> Self {
        let number = |key: &str| args[key].as_f64().unwrap();
        let params = params.trainable();
        let zeros = || params.iter().map(|p| p.detach().zeros_like()).collect();
        Self {
            exp_avgs: zeros(),
            exp_avg_sqs: zeros(),
            settings: optim::AdamW {
                lr: number(lr),
                betas: (number("adam_beta1"), number("adam_beta2")),
                weight_decay: number("adam_weight_decay"),
                eps: number("adam_epsilon"),
            },
            max_norm: number("max_grad_norm"),
            steps: 0,
            params,
        }
    }

    /// Clips, updates and clears; returns the norm before clipping.
    fn step(&mut self) -> Tensor {
        let grads: Vec<Tensor> = self.params.iter().map(Tensor::grad).collect();
        let norm = optim::grad_norm(&grads).unwrap();
        optim::clip_grads_(&grads, &norm, self.max_norm).unwrap();
        self.steps += 1;
        let count = Tensor::from(self.steps as f32);
        let counts: Vec<Tensor> = grads.iter().map(|_| count.shallow_clone()).collect();
        optim::fused_adamw_(
            &self.params,
            &grads,
            &self.exp_avgs,
            &self.exp_avg_sqs,
            &counts,
            &self.settings,
        )
        .unwrap();
        optim::clear_grads(&self.params).unwrap();
        norm
    }
}

/// A network's weights, with upstream's order of its parameters.
struct Network<'a> {
    /// Prefix of the page's names.
    prefix: &'static str,
    params: &'a Params,
    /// Upstream's names. The page's sums exclude the biases of keys: their gradients are rounding errors, from
    /// which Adam makes steps of arbitrary sign.
    summed: Vec<String>,
    before: HashMap<String, Tensor>,
}

impl<'a> Network<'a> {
    fn new(golden: &Golden, prefix: &'static str, params: &'a Params) -> Self {
        let names = golden.page()["parameter_order"][prefix].as_array().unwrap();
        let names = names.iter().map(|name| name.as_str().unwrap().to_owned());
        Self {
            prefix,
            params,
            summed: names.collect(),
            before: HashMap::new(),
        }
    }

    fn get(&self, name: &str) -> Tensor {
        state(self.params, &head_name(name))
    }

    /// All parameters in upstream's order.
    fn names(&self) -> Vec<String> {
        let with_bias = |name: &String| match name.strip_suffix("weight") {
            Some(layer) if layer.ends_with("attn_1.k.") || layer.ends_with("attn.qkv.") => {
                vec![name.clone(), format!("{layer}bias")]
            }
            _ => vec![name.clone()],
        };
        self.summed.iter().flat_map(with_bias).collect()
    }

    /// Stores the parameters before the step.
    fn remember(&mut self) {
        let copies = self.summed.iter();
        self.before = copies
            .map(|name| (name.clone(), self.get(name).detach().copy()))
            .collect();
    }

    /// Compares the gradients before they are clipped.
    fn check_gradients(&self, golden: &Golden, step: usize) {
        let names = self.names();
        let norms: Vec<Tensor> = names.iter().map(|n| self.get(n).grad().norm()).collect();
        let prefix = self.prefix.trim_end_matches(".discriminator");
        let key = format!("out.step{step}.{prefix}.grad_norms");
        golden.check(&key, &Tensor::stack(&norms, 0));
        if step == 0 {
            for name in self.selected(golden) {
                let key = format!("grad.{}.{name}", self.prefix);
                golden.check(&key, &self.get(&name).grad());
            }
        }
    }

    fn selected(&self, golden: &Golden) -> Vec<String> {
        let prefix = format!("{}.", self.prefix);
        let names = golden.config("selected").as_array().unwrap().iter();
        names
            .filter_map(|name| name.as_str().unwrap().strip_prefix(&prefix))
            .map(str::to_owned)
            .collect()
    }

    /// Compares the parameters after the step.
    fn check_parameters(&self, golden: &Golden, step: usize) {
        let check = |what: &str, measure: &dyn Fn(&String) -> Tensor| {
            let values: Vec<Tensor> = self.summed.iter().map(measure).collect();
            let key = format!("out.step{step}.{}.{what}", self.prefix);
            golden.check(&key, &Tensor::stack(&values, 0));
        };
        check("param_sum", &|name| self.get(name).sum(Kind::Float));
        check("param_norm", &|name| self.get(name).norm());
        check("update_norm", &|name| {
            (self.get(name) - &self.before[name]).norm()
        });
        for name in self.selected(golden) {
            let key = format!("out.step{step}.after.{}.{name}", self.prefix);
            golden.check(&key, &self.get(&name));
        }
    }
}

/// Updates a moving average as upstream's `update_ema`: averages floats, copies integers.
fn update_average(average: &Params, params: &Params, decay: f64) {
    let floats = |params: &Params| -> Vec<Tensor> {
        let state = params.state_dict().into_iter().map(|(_, tensor)| tensor);
        state.filter(|t| t.kind() == Kind::Float).collect()
    };
    optim::ema_(&floats(average), &floats(params), decay).unwrap();
    let name = "bn.num_batches_tracked";
    optim::copy_(&[state(average, name)], &[state(params, name)]).unwrap();
}

fn kl_config(page: &Value) -> KlConfig {
    let number = |key: &str| page[key].as_i64().unwrap();
    KlConfig {
        latent_channels: number("embed_dim"),
        base_channels: number("ch"),
        channel_multipliers: integers(&page["ch_mult"]),
        num_res_blocks: number("num_res_blocks"),
        attention_levels: Vec::new(),
        norm_groups: number("norm_num_groups"),
    }
}

/// The networks of the case, ready for training.
struct Setup {
    of_autoencoder: Params,
    of_discriminator: Params,
    of_denoiser: Params,
    autoencoder: KlAutoencoder,
    loss: AutoencoderLoss,
    denoiser: Sit,
    latent_norm: LatentNorm,
    denoiser_weights: Vec<Tensor>,
    config: RepaEConfig,
    heads: Vec<alignment::Head>,
    hidden_depths: [i64; 1],
    average: Model,
}

impl Setup {
    fn new(golden: &Golden) -> Self {
        let weights = golden.weights();
        let of_autoencoder = Params::new(Device::Cpu, 0).unwrap();
        let config = kl_config(golden.config("vae"));
        let autoencoder = KlAutoencoder::new(&of_autoencoder.root(), &config).unwrap();
        of_autoencoder.load(&below(&weights, "vae.")).unwrap();

        let of_discriminator = Params::new(Device::Cpu, 0).unwrap();
        let discriminator = discriminator(&of_discriminator);
        of_discriminator
            .load(&below(&weights, "loss.discriminator."))
            .unwrap();
        let lpips = lpips(&weights, "loss.perceptual_loss.lpips.");
        let config = AutoencoderLossConfig::default();
        let root = of_discriminator.root();
        let loss = AutoencoderLoss::new(&root, config, discriminator, Some(lpips)).unwrap();

        let net = golden.config("net");
        let build = || Model::new(net, &sit_config(net), &below(&weights, "sit."));
        let (model, average) = (build(), build());
        let hidden_depths = [net["encoder_depth"].as_i64().unwrap()];
        let [scale, bias] = ["in.latents_scale", "in.latents_bias"].map(|key| {
            let values = golden.tensor(key).to_kind(Kind::Double);
            Vec::<f64>::try_from(values).unwrap()
        });
        let scaling = LatentScaling::new(&scale, &bias, Device::Cpu).unwrap();
        model.latent_norm.set_statistics(&scaling).unwrap();
        update_average(&average.params, &model.params, 0.0);

        let args = golden.config("args");
        let coefficient = |key: &str| args[key].as_f64().unwrap();
        Self {
            autoencoder,
            loss,
            denoiser: model.sit,
            latent_norm: model.latent_norm,
            denoiser_weights: model.params.trainable(),
            config: RepaEConfig {
                autoencoder_alignment: coefficient("vae_align_proj_coeff"),
                denoiser_alignment: coefficient("proj_coeff"),
            },
            of_autoencoder,
            of_discriminator,
            of_denoiser: model.params,
            heads: model.heads,
            hidden_depths,
            average,
        }
    }
}

impl Setup {
    fn repa_e(&self) -> RepaE<'_, Sit> {
        RepaE {
            autoencoder: &self.autoencoder,
            loss: &self.loss,
            denoiser: &self.denoiser,
            latent_norm: &self.latent_norm,
            denoiser_weights: &self.denoiser_weights,
            objective: Velocity::default(),
            config: self.config,
            precision: None,
            hidden_depths: &self.hidden_depths,
        }
    }
}

fn no_gradient(params: &Params) -> bool {
    params.trainable().iter().all(|w| !w.grad().defined())
}

#[test]
fn two_steps_follow_upstream() {
    let golden = Golden::open("repae/repae_step");
    let setup = Setup::new(&golden);
    let repa_e = setup.repa_e();
    let args = golden.config("args");
    let mut autoencoder_adamw = Optimizer::new(&setup.of_autoencoder, args, "vae_learning_rate");
    let mut discriminator_adamw =
        Optimizer::new(&setup.of_discriminator, args, "disc_learning_rate");
    let mut denoiser_adamw = Optimizer::new(&setup.of_denoiser, args, "learning_rate");
    let mut autoencoder = Network::new(&golden, "vae", &setup.of_autoencoder);
    let mut discriminator = Network::new(&golden, "loss.discriminator", &setup.of_discriminator);
    let mut denoiser = Network::new(&golden, "sit", &setup.of_denoiser);

    for step in 0..golden.config("n_steps").as_u64().unwrap() as usize {
        let input = |name: &str| golden.tensor(&format!("in.step{step}.{name}"));
        let out = |name: &str, t: &Tensor| golden.check(&format!("out.step{step}.{name}"), t);
        let number = |name: &str, value: f64| out(name, &Tensor::from(value as f32));
        let (images, labels) = (input("raw_image"), input("labels"));
        let align = |hidden: &[Tensor]| -> Result<Tensor, DiffusionError> {
            let projected = setup.heads[0].forward(&hidden[0]).unwrap();
            Ok(cosine(&[input("zs.0")], &[projected]))
        };
        let random_inputs = RandomInputs {
            posterior_noise: input("posterior_noise"),
            t: input("time").flatten(0, -1),
            noise: input("noise"),
        };
        for network in [&mut autoencoder, &mut discriminator, &mut denoiser] {
            network.remember();
        }

        let number_of_step = step as u64;
        let first = repa_e
            .autoencoder_pass(&images, &labels, &random_inputs, number_of_step, align)
            .unwrap();
        first.total.backward();
        assert!(no_gradient(&setup.of_denoiser) && no_gradient(&setup.of_discriminator));
        autoencoder.check_gradients(&golden, step);
        out("grad_norm_vae", &autoencoder_adamw.step());
        out("vae_loss", &first.total);
        out("vae_align_loss", &first.alignment);
        out("z", &first.latents);
        out("recon", &first.reconstructions);
        let parts = &first.generator;
        out("generator_total_loss", &parts.total);
        out("reconstruction_loss", &parts.reconstruction);
        out("perceptual_loss", &parts.perceptual);
        out("kl_loss", &parts.kl);
        out("gan_loss", &parts.gan);
        out("weighted_gan_loss", &parts.weighted_gan);
        number("discriminator_factor", parts.discriminator_factor);
        number("d_weight", repa_e.loss.config().discriminator_weight);

        let second = repa_e.discriminator_pass(&first, number_of_step).unwrap();
        second.total.backward();
        assert!(no_gradient(&setup.of_denoiser) && no_gradient(&setup.of_autoencoder));
        discriminator.check_gradients(&golden, step);
        out("grad_norm_disc", &discriminator_adamw.step());
        out("d_loss", &second.total);
        out("logits_real", &second.logits_real);
        out("logits_fake", &second.logits_fake);
        out("lecam_loss", &second.lecam);

        let config = repa_e.denoiser.config();
        let null_class = repa_e.denoiser.dimensions().null_class.unwrap();
        let uniform = input("drop_uniform");
        let dropped = drop_labels(&labels, &uniform, config.class_dropout, null_class).unwrap();
        let third = repa_e
            .denoiser_pass(&first, &dropped, Mode::Eval, align)
            .unwrap();
        third.total.backward();
        assert!(no_gradient(&setup.of_discriminator) && no_gradient(&setup.of_autoencoder));
        denoiser.check_gradients(&golden, step);
        out("grad_norm_sit", &denoiser_adamw.step());
        out("sit_loss", &third.total);
        out("denoising_loss", &third.denoising);
        out("proj_loss", &third.alignment);
        let trained: Vec<i64> = denoiser
            .names()
            .iter()
            .map(|name| i64::from(denoiser.get(name).requires_grad()))
            .collect();
        out("sit_trainable_after", &Tensor::from_slice(&trained));

        // The page states another decay, but its numbers were computed with upstream's default.
        update_average(&setup.average.params, &setup.of_denoiser, 0.9999);
        for network in [&autoencoder, &discriminator, &denoiser] {
            network.check_parameters(&golden, step);
        }
        for name in ["running_mean", "running_var", "num_batches_tracked"] {
            for layer in [3, 6, 9] {
                let name = format!("main.{layer}.{name}");
                let found = state(&setup.of_discriminator, &name);
                out(&format!("loss.discriminator.{name}"), &found);
            }
            let name = format!("bn.{name}");
            out(&format!("sit.{name}"), &state(&setup.of_denoiser, &name));
            out(&format!("ema.{name}"), &state(&setup.average.params, &name));
        }
        for name in golden.config("selected_ema").as_array().unwrap() {
            let name = name.as_str().unwrap();
            out(&format!("ema.{name}"), &state(&setup.average.params, name));
        }
    }
}
