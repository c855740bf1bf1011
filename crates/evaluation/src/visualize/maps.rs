//! Computes similarity maps and principal components from an encoder's tokens.

use alignment::SpatialNorm;
use encoders::{Encoder, Grid};
use metrics::spatial::{anchor_similarity, pca_rgb};
use ndarray::{Array1, Array2, ArrayView2};
use tch::Device;
use training::images_to_device;

use super::anchor::{Anchor, Patch};
use super::error::VisualizeError;
use super::images::TitledImages;
use crate::tensors;

/// Images that an encoder processes at once.
const BATCH: i64 = 8;

/// The maps of one encoder for all images.
#[derive(Debug)]
pub struct Row {
    /// Name of the encoder.
    pub encoder: String,
    /// Width of its tokens, `D`.
    pub width: usize,
    /// The maps of each image.
    pub images: Vec<TokenMaps>,
}

/// The maps of one encoder's tokens for one image.
#[derive(Debug)]
pub struct TokenMaps {
    /// Rows and columns of the patches.
    pub grid: Grid,
    /// Patches that the other patches are compared with.
    pub anchors: Vec<Patch>,
    /// Maps of the unchanged tokens.
    pub raw: Maps,
    /// Maps of the spatially normalised tokens.
    pub normalised: Maps,
}

/// The maps of tokens `[T, D]`.
#[derive(Debug)]
pub struct Maps {
    /// Cosine similarity `[T]` to each anchor.
    pub similarity: Vec<Array1<f32>>,
    /// The first three principal components as colours `[T, 3]`, 0 to 1.
    pub components: Array2<f32>,
}

impl Row {
    /// Encodes the images and computes the maps of their tokens, both unchanged and normalised by `norm`.
    ///
    /// # Errors
    /// [`VisualizeError::Anchor`] if an anchor is outside the encoder's grid; the encoder failed, or its tokens are not
    /// finite.
    pub fn new(
        encoder: &dyn Encoder,
        images: &TitledImages,
        anchors: &[Anchor],
        norm: &SpatialNorm,
        device: Device,
    ) -> Result<Self, VisualizeError> {
        let spec = encoder.spec();
        let patches = |image: usize| -> Result<Vec<Patch>, VisualizeError> {
            let mut patches = Vec::new();
            for anchor in anchors {
                patches.extend(anchor.patches(&spec.name, spec.grid, images.mask(image))?);
            }
            Ok(patches)
        };
        let patches = (0..images.len())
            .map(patches)
            .collect::<Result<Vec<_>, _>>()?;

        let pixels = images_to_device(&images.batch, device)?;
        let count = images.len() as i64;
        let mut maps = Vec::new();
        for start in (0..count).step_by(BATCH as usize) {
            let batch = pixels.f_narrow(0, start, BATCH.min(count - start))?;
            let tokens = encoder.encode(&batch)?.patch;
            let raw = tensors::array3(&tokens)?;
            let normalised = tensors::array3(&norm.forward(&tokens)?)?;
            let pairs = raw.outer_iter().zip(normalised.outer_iter());
            for ((raw, normalised), anchors) in pairs.zip(&patches[start as usize..]) {
                maps.push(TokenMaps {
                    grid: spec.grid,
                    anchors: anchors.clone(),
                    raw: Maps::new(raw, anchors, spec.grid)?,
                    normalised: Maps::new(normalised, anchors, spec.grid)?,
                });
            }
        }
        Ok(Self {
            encoder: spec.name.clone(),
            width: spec.width,
            images: maps,
        })
    }
}

impl Maps {
    /// Computes the maps of tokens `[T, D]`; the anchors are on the grid.
    fn new(
        tokens: ArrayView2<'_, f32>,
        anchors: &[Patch],
        grid: Grid,
    ) -> Result<Self, VisualizeError> {
        let similarity = anchors
            .iter()
            .map(|anchor| anchor_similarity(tokens, anchor.row * grid.width + anchor.column))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            similarity,
            components: pca_rgb(tokens)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use data::{Background, Image, Sample};
    use encoders::{EncoderError, EncoderSpec, Tokens};
    use tch::{Kind, Tensor};

    /// An encoder whose tokens are the mean colours of 2 x 3 patches, divided by `divisor`.
    #[derive(Debug)]
    struct PatchMeans {
        spec: EncoderSpec,
        divisor: f64,
    }

    impl PatchMeans {
        fn new(divisor: f64) -> Self {
            let spec = "name = 'means'\ngrid = [2, 3]\nwidth = 3\ninput_size = 12\n\
                [preprocessing]\nscale = false\norder = 'resize-first'\nresize = 'none'\n\
                antialias = false\nmean = [0.0, 0.0, 0.0]\nstd = [1.0, 1.0, 1.0]";
            Self {
                spec: toml::from_str(spec).unwrap(),
                divisor,
            }
        }
    }

    impl Encoder for PatchMeans {
        fn spec(&self) -> &EncoderSpec {
            &self.spec
        }

        fn encode(&self, images: &Tensor) -> Result<Tokens, EncoderError> {
            let means = images
                .to_kind(Kind::Float)
                .adaptive_avg_pool2d([2, 3])
                .flatten(2, 3)
                .transpose(1, 2);
            Ok(Tokens {
                patch: means / self.divisor,
                class: None,
            })
        }
    }

    struct Ramp;

    impl data::Dataset for Ramp {
        fn name(&self) -> &str {
            "ramp"
        }

        fn len(&self) -> u64 {
            11
        }

        fn class_names(&self) -> &[String] {
            &[]
        }

        fn read(&self, index: u64) -> Result<Sample, data::DataError> {
            let pixels = (0..12 * 12)
                .flat_map(|i| [i as u8, (i % 12 * 20) as u8, (i / 5 + index * 9) as u8]);
            Ok(Sample {
                index,
                image: Image::new(12, 12, pixels.collect(), None).unwrap(),
                label: 0,
            })
        }

        fn fingerprint(&self) -> &str {
            ""
        }
    }

    fn images(count: u64) -> TitledImages {
        let ids: Vec<u64> = (0..count).collect();
        TitledImages::of_dataset(&Ramp, &ids, 12).unwrap()
    }

    fn row(divisor: f64, images: &TitledImages, anchors: &[Anchor]) -> Result<Row, VisualizeError> {
        let norm = SpatialNorm::default();
        Row::new(
            &PatchMeans::new(divisor),
            images,
            anchors,
            &norm,
            Device::Cpu,
        )
    }

    #[test]
    fn the_similarity_of_an_anchor_to_itself_is_one_in_every_image() {
        // More images than one batch of the encoder.
        let images = images(11);
        assert_eq!(
            images.batch,
            data::read_batch(&Ramp, &(0..11).collect::<Vec<_>>(), 12, Background::White).unwrap()
        );
        let anchors = [Anchor::Patch { row: 1, column: 2 }, Anchor::Auto];
        let row = row(1.0, &images, &anchors).unwrap();
        assert_eq!(
            (row.encoder.as_str(), row.width, row.images.len()),
            ("means", 3, 11)
        );
        for maps in &row.images {
            let anchors = [Patch { row: 1, column: 2 }, Patch { row: 1, column: 1 }];
            assert_eq!(maps.anchors, anchors);
            for maps in [&maps.raw, &maps.normalised] {
                assert_eq!(maps.components.dim(), (6, 3));
                for (similarity, index) in maps.similarity.iter().zip([5, 4]) {
                    assert_eq!((similarity.len(), similarity[index]), (6, 1.0));
                    assert!(similarity.iter().filter(|&&value| value == 1.0).count() < 6);
                }
            }
        }
        // The first token is (31.5, 30, 6), and the anchor's token is (111.5, 190, 21); blue grows by 9 per image.
        let raw = |image: usize| row.images[image].raw.similarity[0][0];
        for (image, cosine) in [(0, 0.962), (10, 0.767)] {
            assert!((raw(image) - cosine).abs() < 2e-3, "{}", raw(image));
        }
    }

    #[test]
    fn tokens_that_are_not_finite_are_rejected() {
        let error = row(0.0, &images(1), &[Anchor::Auto]).unwrap_err();
        assert!(matches!(error, VisualizeError::Metrics(_)), "{error}");
    }

    #[test]
    fn an_anchor_outside_the_grid_is_rejected_with_the_name_of_the_encoder() {
        let anchor = Anchor::Patch { row: 2, column: 0 };
        let error = row(1.0, &images(1), &[anchor]).unwrap_err().to_string();
        assert!(error.contains("2,0") && error.contains("means"), "{error}");
    }
}
