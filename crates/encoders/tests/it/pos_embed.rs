//! Position embeddings are resampled as in timm.

use std::path::Path;

use encoders::resample_pos_embed;
use tch::Tensor;

#[test]
fn resampled_tables_equal_those_of_timm() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/preprocess");
    let tensors = Tensor::read_safetensors(folder.join("pos_embed.safetensors")).unwrap();
    let page: serde_json::Value =
        serde_json::from_slice(&std::fs::read(folder.join("pos_embed.json")).unwrap()).unwrap();
    let tolerance = page["tolerance"]["all"]["atol"].as_f64().unwrap();
    let find = |wanted: &str| {
        tensors
            .iter()
            .find(|(name, _)| name == wanted)
            .unwrap()
            .1
            .shallow_clone()
    };
    let mut compared = 0;
    for (case, config) in page["config"].as_object().unwrap() {
        let Some(new) = config.get("new") else {
            continue;
        };
        let grid = (new[0].as_i64().unwrap(), new[1].as_i64().unwrap());
        let prefix = config["num_prefix_tokens"].as_i64().unwrap();
        let found = resample_pos_embed(&find(&format!("in.{case}")), grid, prefix).unwrap();
        let expected = find(&format!("out.{case}"));
        assert_eq!(found.size(), expected.size(), "{case}");
        let difference = (found - expected).abs().max().double_value(&[]);
        assert!(difference <= tolerance, "{case}: {difference}");
        compared += 2;
    }
    assert_eq!(
        compared,
        tensors.len(),
        "a tensor of the golden file was not compared"
    );
}

#[test]
fn a_table_of_another_shape_is_an_error() {
    let table = Tensor::ones([4, 8], (tch::Kind::Float, tch::Device::Cpu));
    assert!(resample_pos_embed(&table, (4, 4), 1).is_err());
}
