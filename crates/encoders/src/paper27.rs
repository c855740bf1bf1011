//! The 27 encoders of the study (arXiv 2512.10794, figure 3).

/// Facts about an encoder whose weights are not part of this project.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PaperEncoder {
    /// Name, as upstream's `--enc-type` has it.
    pub name: &'static str,
    /// Family.
    pub family: &'static str,
    /// Width of a token.
    pub width: usize,
    /// Millions of parameters.
    pub params_m: f64,
    /// Licence of the weights.
    pub licence: &'static str,
}

/// All of them, in the study's order.
#[rustfmt::skip]
pub const PAPER27: [PaperEncoder; 27] = [
    PaperEncoder { name: "dinov2-vit-b", family: "DINOv2", width: 768, params_m: 85.72, licence: "Apache-2.0" },
    PaperEncoder { name: "dinov2-vit-l", family: "DINOv2", width: 1024, params_m: 303.23, licence: "Apache-2.0" },
    PaperEncoder { name: "dinov2-vit-g", family: "DINOv2", width: 1536, params_m: 1134.77, licence: "Apache-2.0" },
    PaperEncoder { name: "dinov3-vit-b16", family: "DINOv3", width: 768, params_m: 85.66, licence: "DINOv3 licence" },
    PaperEncoder { name: "dinov3-vit-l16", family: "DINOv3", width: 1024, params_m: 303.13, licence: "DINOv3 licence" },
    PaperEncoder { name: "dinov3-vit-h16plus", family: "DINOv3", width: 1280, params_m: 840.59, licence: "DINOv3 licence" },
    PaperEncoder { name: "dinov3-vit-7b16", family: "DINOv3", width: 4096, params_m: 6716.03, licence: "DINOv3 licence" },
    PaperEncoder { name: "webssl-vit-dino300m_full2b_224", family: "Web-SSL DINO", width: 1024, params_m: 303.65, licence: "CC-BY-NC-4.0" },
    PaperEncoder { name: "webssl-vit-dino1b_full2b_224", family: "Web-SSL DINO", width: 1536, params_m: 1134.77, licence: "CC-BY-NC-4.0" },
    PaperEncoder { name: "webssl-vit-dino2b_full2b_224", family: "Web-SSL DINO", width: 2688, params_m: 2084.23, licence: "CC-BY-NC-4.0" },
    PaperEncoder { name: "webssl-vit-dino3b_full2b_224", family: "Web-SSL DINO", width: 3072, params_m: 2948.31, licence: "CC-BY-NC-4.0" },
    PaperEncoder { name: "pe-vit-b", family: "Perception Encoder core", width: 768, params_m: 85.84, licence: "Apache-2.0" },
    PaperEncoder { name: "pe-vit-l", family: "Perception Encoder core", width: 1024, params_m: 303.18, licence: "Apache-2.0" },
    PaperEncoder { name: "pe-vit-g", family: "Perception Encoder core", width: 1536, params_m: 1850.55, licence: "Apache-2.0" },
    PaperEncoder { name: "langpe-vit-l", family: "Perception Encoder lang", width: 1024, params_m: 290.63, licence: "Apache-2.0" },
    PaperEncoder { name: "langpe-vit-g", family: "Perception Encoder lang", width: 1536, params_m: 1739.74, licence: "Apache-2.0" },
    PaperEncoder { name: "spatialpe-vit-b", family: "Perception Encoder spatial", width: 768, params_m: 85.84, licence: "Apache-2.0" },
    PaperEncoder { name: "spatialpe-vit-l", family: "Perception Encoder spatial", width: 1024, params_m: 303.18, licence: "Apache-2.0" },
    PaperEncoder { name: "spatialpe-vit-g", family: "Perception Encoder spatial", width: 1536, params_m: 1850.71, licence: "Apache-2.0" },
    PaperEncoder { name: "cradio-vit-b", family: "C-RADIOv3", width: 768, params_m: 85.87, licence: "nvidia-open-model-license" },
    PaperEncoder { name: "cradio-vit-l", family: "C-RADIOv3", width: 1024, params_m: 303.42, licence: "nvidia-open-model-license" },
    PaperEncoder { name: "dino-vit-b", family: "DINO", width: 768, params_m: 85.84, licence: "Apache-2.0" },
    PaperEncoder { name: "clip-vit-L", family: "CLIP", width: 1024, params_m: 303.18, licence: "Apache-2.0" },
    PaperEncoder { name: "mocov3-vit-b", family: "MoCo v3", width: 768, params_m: 85.84, licence: "CC-BY-NC-4.0" },
    PaperEncoder { name: "mocov3-vit-l", family: "MoCo v3", width: 1024, params_m: 303.36, licence: "not stated" },
    PaperEncoder { name: "jepa-vit-h", family: "I-JEPA", width: 1280, params_m: 630.76, licence: "CC-BY-NC-4.0" },
    PaperEncoder { name: "mae-vit-l", family: "MAE", width: 1024, params_m: 303.36, licence: "CC-BY-NC-4.0" },
];
