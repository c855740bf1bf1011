//! A variant of SiT from public parts: the blocks of SiT, with register tokens (arXiv 2309.16588) before the patches.
//!
//! Trains it on random images, and samples. Run it with `cargo run -p diffusion --example sit_variant`.

use diffusion::models::sit::Block;
use diffusion::nn::{
    FinalLayer, LabelEmbedder, LayerNorm, PatchEmbedder, TimestepEmbedder, position_embedding,
    unpatchify,
};
use diffusion::objective::velocity::Velocity;
use diffusion::samplers::{Method, Sampler, SamplerConfig};
use diffusion::{Denoiser, DiffusionError, Dimensions, HiddenTokens, Mode, Output, SitConfig};
use tch::{Device, Kind, Tensor};
use torch_ext::{Generator, Init, Params, Scope};

/// Number of register tokens.
const REGISTERS: i64 = 4;

/// A SiT whose blocks also see learned tokens that belong to no patch.
#[derive(Debug)]
struct SitWithRegisters {
    x_embedder: PatchEmbedder,
    t_embedder: TimestepEmbedder,
    y_embedder: LabelEmbedder,
    pos_embed: Tensor,
    /// `[1, REGISTERS, D]`.
    registers: Tensor,
    blocks: Vec<Block>,
    final_layer: FinalLayer<LayerNorm>,
    config: SitConfig,
}

impl SitWithRegisters {
    fn new(scope: &Scope, config: SitConfig) -> Result<Self, DiffusionError> {
        config.validate()?;
        let (size, patch, channels) = (config.input_size, config.patch_size, config.in_channels);
        let width = config.hidden_size;
        let blocks = (0..config.depth)
            .map(|index| Block::new(&scope.sub("blocks").sub(index), &config))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            x_embedder: PatchEmbedder::new(&scope.sub("x_embedder"), channels, size, patch, width)?,
            t_embedder: TimestepEmbedder::new(&scope.sub("t_embedder"), width)?,
            y_embedder: LabelEmbedder::new(
                &scope.sub("y_embedder"),
                config.num_classes,
                width,
                config.class_dropout,
            )?,
            pos_embed: position_embedding(scope, width, size / patch, false)?,
            registers: scope.var(
                "registers",
                &[1, REGISTERS, width],
                Init::Normal { std: 0.02 },
            )?,
            blocks,
            final_layer: FinalLayer::new(
                &scope.sub("final_layer"),
                LayerNorm,
                width,
                patch * patch * channels,
            )?,
            config,
        })
    }
}

impl Denoiser for SitWithRegisters {
    fn forward(
        &self,
        x: &Tensor,
        t: &Tensor,
        labels: &Tensor,
        depths: &[i64],
        mode: Mode<'_>,
    ) -> Result<Output, DiffusionError> {
        let patches = self.x_embedder.forward(x)?.f_add(&self.pos_embed)?; // [B, T, D]
        let (batch, count, width) = patches.size3()?;
        let registers = self.registers.f_expand([batch, REGISTERS, width], false)?;
        // Alignment compares one token per patch, so the registers are no hidden tokens.
        let patch_tokens = |x: &Tensor| Ok(x.f_narrow(1, REGISTERS, count)?);

        let c = self.t_embedder.forward(t)?;
        // `Block` takes the condition after SiLU.
        let c = c.f_add(&self.y_embedder.forward(labels, mode)?)?.f_silu()?; // [B, D]
        let mut hidden = HiddenTokens::new(depths, self.config.depth)?;
        let mut x = Tensor::f_cat(&[registers, patches], 1)?; // [B, REGISTERS + T, D]
        for block in &self.blocks {
            x = block.forward(&x, &c)?;
            hidden.after_block(|| patch_tokens(&x))?;
        }
        let x = self.final_layer.forward(&patch_tokens(&x)?, &c)?;
        let SitConfig {
            in_channels,
            input_size,
            patch_size,
            ..
        } = self.config;
        Ok(Output {
            prediction: unpatchify(&x, in_channels, input_size, patch_size)?,
            hidden: hidden.into_tokens(),
        })
    }

    fn dimensions(&self) -> Dimensions {
        let (size, side) = (
            self.config.input_size,
            self.config.input_size / self.config.patch_size,
        );
        Dimensions {
            image: [self.config.in_channels, size, size],
            num_classes: self.config.num_classes,
            null_class: self.y_embedder.null_class(),
            depth: self.config.depth,
            token_grid: (side, side),
            hidden_width: self.config.hidden_size,
        }
    }
}

fn main() -> Result<(), DiffusionError> {
    let config = SitConfig {
        input_size: 16,
        in_channels: 3,
        num_classes: 2,
        ..SitConfig::named("SiT-XS/4")?
    };
    let params = Params::new(Device::Cpu, 0)?;
    let model = SitWithRegisters::new(&params.root(), config)?;
    let mut generator = Generator::new(Device::Cpu, 0)?;
    let images = generator.randn(&[8, 3, 16, 16], Kind::Float)?;
    let labels = Tensor::from_slice(&[0i64, 1, 0, 1, 0, 1, 0, 1]);

    let objective = Velocity::default();
    for step in 1..=20 {
        let noisy = objective.draw(&images, &mut generator)?;
        let mode = Mode::Train(&mut generator);
        // `output.hidden[0]`, the tokens after block 2, is for an alignment loss; see the example of the crate
        // `alignment`.
        let output = model.forward(&noisy.x, &noisy.t, &labels, &[2], mode)?;
        let loss = objective.loss(&output.prediction, &noisy)?.f_mean(None)?;
        loss.f_backward()?;
        tch::no_grad(|| -> Result<(), DiffusionError> {
            for mut weight in params.trainable() {
                let update = weight.f_grad()?.f_mul_scalar(-0.01)?;
                let _updated = weight.f_add_(&update)?;
                weight.zero_grad();
            }
            Ok(())
        })?;
        println!("step {step}: loss {:.3}", loss.f_double_value(&[])?);
    }

    let config = SamplerConfig {
        method: Method::Heun,
        num_steps: 10,
        ..SamplerConfig::default()
    };
    let noise = generator.randn(&[8, 3, 16, 16], Kind::Float)?;
    let sampler = Sampler::new(config, objective.path)?;
    let samples = sampler.sample(&model, &noise, &labels, &mut generator, |_| {})?;
    println!("samples: {:?}", samples.size());
    Ok(())
}
