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
    /// Where the weights are published.
    pub weights: &'static str,
}

/// All of them, in the study's order.
#[rustfmt::skip]
pub const PAPER27: [PaperEncoder; 27] = [
    PaperEncoder { name: "dinov2-vit-b", family: "DINOv2", width: 768, params_m: 85.72, licence: "Apache-2.0", weights: "timm vit_base_patch14_dinov2.lvd142m" },
    PaperEncoder { name: "dinov2-vit-l", family: "DINOv2", width: 1024, params_m: 303.23, licence: "Apache-2.0", weights: "timm vit_large_patch14_dinov2.lvd142m" },
    PaperEncoder { name: "dinov2-vit-g", family: "DINOv2", width: 1536, params_m: 1134.77, licence: "Apache-2.0", weights: "timm vit_giant_patch14_dinov2.lvd142m" },
    PaperEncoder { name: "dinov3-vit-b16", family: "DINOv3", width: 768, params_m: 85.66, licence: "DINOv3 licence", weights: "timm vit_base_patch16_dinov3_qkvb.lvd1689m" },
    PaperEncoder { name: "dinov3-vit-l16", family: "DINOv3", width: 1024, params_m: 303.13, licence: "DINOv3 licence", weights: "timm vit_large_patch16_dinov3_qkvb.lvd1689m" },
    PaperEncoder { name: "dinov3-vit-h16plus", family: "DINOv3", width: 1280, params_m: 840.59, licence: "DINOv3 licence", weights: "timm vit_huge_plus_patch16_dinov3_qkvb.lvd1689m" },
    PaperEncoder { name: "dinov3-vit-7b16", family: "DINOv3", width: 4096, params_m: 6716.03, licence: "DINOv3 licence", weights: "timm vit_7b_patch16_dinov3.lvd1689m" },
    PaperEncoder { name: "webssl-vit-dino300m_full2b_224", family: "Web-SSL DINO", width: 1024, params_m: 303.65, licence: "CC-BY-NC-4.0", weights: "HF facebook/webssl-dino300m-full2b-224" },
    PaperEncoder { name: "webssl-vit-dino1b_full2b_224", family: "Web-SSL DINO", width: 1536, params_m: 1134.77, licence: "CC-BY-NC-4.0", weights: "HF facebook/webssl-dino1b-full2b-224" },
    PaperEncoder { name: "webssl-vit-dino2b_full2b_224", family: "Web-SSL DINO", width: 2688, params_m: 2084.23, licence: "CC-BY-NC-4.0", weights: "HF facebook/webssl-dino2b-full2b-224" },
    PaperEncoder { name: "webssl-vit-dino3b_full2b_224", family: "Web-SSL DINO", width: 3072, params_m: 2948.31, licence: "CC-BY-NC-4.0", weights: "HF facebook/webssl-dino3b-full2b-224" },
    PaperEncoder { name: "pe-vit-b", family: "Perception Encoder core", width: 768, params_m: 85.84, licence: "Apache-2.0", weights: "HF facebook/PE-Core-B16-224" },
    PaperEncoder { name: "pe-vit-l", family: "Perception Encoder core", width: 1024, params_m: 303.18, licence: "Apache-2.0", weights: "HF facebook/PE-Core-L14-336" },
    PaperEncoder { name: "pe-vit-g", family: "Perception Encoder core", width: 1536, params_m: 1850.55, licence: "Apache-2.0", weights: "HF facebook/PE-Core-G14-448" },
    PaperEncoder { name: "langpe-vit-l", family: "Perception Encoder lang", width: 1024, params_m: 290.63, licence: "Apache-2.0", weights: "HF facebook/PE-Lang-L14-448" },
    PaperEncoder { name: "langpe-vit-g", family: "Perception Encoder lang", width: 1536, params_m: 1739.74, licence: "Apache-2.0", weights: "HF facebook/PE-Lang-G14-448" },
    PaperEncoder { name: "spatialpe-vit-b", family: "Perception Encoder spatial", width: 768, params_m: 85.84, licence: "Apache-2.0", weights: "HF facebook/PE-Spatial-B16-512" },
    PaperEncoder { name: "spatialpe-vit-l", family: "Perception Encoder spatial", width: 1024, params_m: 303.18, licence: "Apache-2.0", weights: "HF facebook/PE-Spatial-L14-448" },
    PaperEncoder { name: "spatialpe-vit-g", family: "Perception Encoder spatial", width: 1536, params_m: 1850.71, licence: "Apache-2.0", weights: "HF facebook/PE-Spatial-G14-448" },
    PaperEncoder { name: "cradio-vit-b", family: "C-RADIOv3", width: 768, params_m: 85.87, licence: "nvidia-open-model-license", weights: "HF nvidia/C-RADIOv3-B" },
    PaperEncoder { name: "cradio-vit-l", family: "C-RADIOv3", width: 1024, params_m: 303.42, licence: "nvidia-open-model-license", weights: "HF nvidia/C-RADIOv3-L" },
    PaperEncoder { name: "dino-vit-b", family: "DINO", width: 768, params_m: 85.84, licence: "Apache-2.0", weights: "timm vit_base_patch16_224.dino" },
    PaperEncoder { name: "clip-vit-L", family: "CLIP", width: 1024, params_m: 303.18, licence: "Apache-2.0", weights: "timm vit_large_patch14_clip_quickgelu_224.openai" },
    PaperEncoder { name: "mocov3-vit-b", family: "MoCo v3", width: 768, params_m: 85.84, licence: "CC-BY-NC-4.0", weights: "official vit-b-300ep.pth.tar from facebookresearch/moco-v3" },
    PaperEncoder { name: "mocov3-vit-l", family: "MoCo v3", width: 1024, params_m: 303.36, licence: "not stated", weights: "no official file" },
    PaperEncoder { name: "jepa-vit-h", family: "I-JEPA", width: 1280, params_m: 630.76, licence: "CC-BY-NC-4.0", weights: "timm vit_huge_patch14_gap_224.in1k_ijepa" },
    PaperEncoder { name: "mae-vit-l", family: "MAE", width: 1024, params_m: 303.36, licence: "CC-BY-NC-4.0", weights: "timm vit_large_patch16_224.mae" },
];
