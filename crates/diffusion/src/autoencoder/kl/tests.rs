//! Comparison with upstream's numbers, including intermediate results of encoder and decoder.

use serde_json::Value;
use tch::{Device, Reduction};
use torch_ext::Params;

use super::{KlAutoencoder, KlConfig, Posterior};
use crate::golden::Golden;

fn numbers(value: &Value) -> Vec<i64> {
    let entries = value.as_array().unwrap();
    entries.iter().map(|n| n.as_i64().unwrap()).collect()
}

fn config(page: &Value) -> KlConfig {
    let number = |key: &str| page[key].as_i64().unwrap();
    let channel_multipliers = numbers(&page["ch_mult"]);
    let attended = numbers(&page["attn_resolutions"]);
    let resolution = number("resolution");
    KlConfig {
        latent_channels: number("embed_dim"),
        base_channels: number("ch"),
        num_res_blocks: number("num_res_blocks"),
        attention_levels: (0..channel_multipliers.len())
            .filter(|level| attended.contains(&(resolution >> level)))
            .collect(),
        norm_groups: number("norm_num_groups"),
        channel_multipliers,
    }
}

fn follows_upstream(name: &str) {
    let golden = Golden::open(name);
    let params = Params::new(Device::Cpu, 0).unwrap();
    let model = KlAutoencoder::new(&params.root(), &config(golden.config("vae"))).unwrap();
    params.load(&golden.weights()).unwrap();

    let x = golden.tensor("in.x").set_requires_grad(true);
    let moments = model.moments(&x).unwrap();
    let posterior = Posterior::new(&moments).unwrap();
    let z = posterior
        .sample_with_noise(&golden.tensor("in.noise"))
        .unwrap();
    let recon = model.to_pixels(&z).unwrap();
    let kl = posterior.kl().unwrap();
    let weight = golden.config("kl_weight").as_f64().unwrap();
    let loss = recon.mse_loss(&x, Reduction::Mean) + kl.mean(None) * weight;
    loss.backward();

    golden.check("out.moments", &moments);
    golden.check("out.mean", posterior.mode());
    golden.check("out.logvar", posterior.log_variance());
    golden.check("out.std", &posterior.std().unwrap());
    golden.check("out.z", &z);
    golden.check("out.recon", &recon);
    golden.check("out.kl", &kl);
    golden.check("out.loss", &loss);
    let mode = model.to_pixels(posterior.mode()).unwrap();
    golden.check("out.decode_mode", &mode);

    let (encoder, decoder) = (&model.encoder, &model.decoder);
    golden.check("out.encoder", &encoder.forward(&x).unwrap());
    let h = encoder.levels(&x).unwrap();
    let h = encoder.mid.block_1.forward(&h).unwrap();
    golden.check(
        "out.encoder_mid_attn",
        &encoder.mid.attn_1.forward(&h).unwrap(),
    );
    // Upstream's hook kept the last call's result, and the mode was decoded after the sample.
    let h = model.post_quant_conv.forward(posterior.mode()).unwrap();
    let h = decoder.conv_in.forward(&h).unwrap();
    let h = decoder.mid.block_1.forward(&h).unwrap();
    golden.check(
        "out.decoder_mid_attn",
        &decoder.mid.attn_1.forward(&h).unwrap(),
    );

    let raw = Posterior::new(&golden.tensor("in.raw_moments")).unwrap();
    golden.check("out.raw.mean", raw.mode());
    golden.check("out.raw.logvar", raw.log_variance());
    golden.check("out.raw.std", &raw.std().unwrap());
    let sample = raw
        .sample_with_noise(&golden.tensor("in.raw_noise"))
        .unwrap();
    golden.check("out.raw.sample", &sample);
    golden.check("out.raw.kl", &raw.kl().unwrap());

    golden.check("grad.in.x", &x.grad());
    for name in golden.config("gradients_of").as_array().unwrap() {
        let name = name.as_str().unwrap();
        let gradient = params.get(name).unwrap().grad();
        golden.check(&format!("grad.{name}"), &gradient);
    }
}

#[test]
fn f8_follows_upstream() {
    follows_upstream("repae/repae_vae_f8");
}

#[test]
#[ignore = "its data is not in the repository; IREPA_GOLDEN names a folder that contains it"]
fn f16_with_attention_in_the_lowest_level_follows_upstream() {
    follows_upstream("repae/repae_vae_f16");
}

#[test]
#[ignore = "its data is not in the repository; IREPA_GOLDEN names a folder that contains it"]
fn thirty_two_norm_groups_follow_upstream() {
    follows_upstream("repae/repae_vae_g32");
}

#[test]
fn published_layouts_have_upstreams_shapes() {
    for (config, latent, deepest) in [
        (KlConfig::f8d4(), 4, "encoder.down.3.block.1.conv2.weight"),
        (KlConfig::f16d32(), 32, "encoder.down.4.attn.1.q.weight"),
    ] {
        let params = Params::new(Device::Cpu, 0).unwrap();
        KlAutoencoder::new(&params.root(), &config).unwrap();
        let shape = |name: &str| params.get(name).unwrap().size();
        assert_eq!(shape("encoder.conv_in.weight"), [128, 3, 3, 3]);
        assert_eq!(shape("quant_conv.weight"), [2 * latent, 2 * latent, 1, 1]);
        assert_eq!(shape("decoder.conv_in.weight"), [512, latent, 3, 3]);
        assert_eq!(shape(deepest)[0], 512);
        let attended = |name: &str| name.contains(".attn.");
        let levels = params.entries().iter().any(|param| attended(&param.name));
        assert_eq!(levels, latent == 32);
        assert!(params.entries().iter().all(|param| param.trainable));
        if latent == 4 {
            // Stable Diffusion's autoencoder.
            assert_eq!(params.count(), 83_653_863);
        }
    }
}
