use diffusion::DiffusionError;
use diffusion::nn::{Rotary, sincos_2d};
use tch::{Device, Kind, Tensor};
use torch_ext::Generator;

use crate::golden::Golden;

#[test]
fn rotary_tables_and_rotations_follow_upstream() {
    let golden = Golden::open("jit/jit_rope");
    let modules = golden.config("modules").as_array().unwrap().clone();
    for (index, module) in modules.iter().enumerate() {
        let number = |key: &str| module[key].as_i64().unwrap();
        let rotary = Rotary::new(
            2 * number("dim"),
            number("pt_seq_len"),
            number("num_cls_token"),
            Device::Cpu,
        )
        .unwrap();
        let (cos, sin) = rotary.tables().unwrap();
        golden.check(&format!("out.cos.{index}"), &cos);
        golden.check(&format!("out.sin.{index}"), &sin);
        if index < 2 {
            let queries = golden.tensor(&format!("in.q.{index}"));
            let rotated = rotary.forward(&queries).unwrap();
            golden.check(&format!("out.q_rot.{index}"), &rotated);
        }
    }
    let tables = golden.config("pos_embed").as_array().unwrap().clone();
    for (index, table) in tables.iter().enumerate() {
        let number = |key: &str| table[key].as_i64().unwrap();
        let table = sincos_2d(number("embed_dim"), number("grid_size")).unwrap();
        let table = table.to_kind(Kind::Float).unsqueeze(0);
        golden.check(&format!("out.pos_embed.{index}"), &table);
    }
}

#[test]
fn products_of_rotated_vectors_depend_only_on_the_distance() {
    let rotary = Rotary::new(8, 4, 2, Device::Cpu).unwrap();
    let mut generator = Generator::new(Device::Cpu, 0).unwrap();
    let mut rotated = || {
        let one = generator.randn(&[1, 1, 1, 8], Kind::Float).unwrap();
        let all = one.expand([1, 1, 18, 8], false);
        let rotated = rotary.forward(&all).unwrap();
        // In-context tokens are not rotated.
        assert_eq!(rotated.narrow(2, 0, 2), all.narrow(2, 0, 2));
        // The rotation of the grid's tokens does not depend on whether in-context tokens precede them.
        let patches = rotary.forward(&all.narrow(2, 2, 16)).unwrap();
        assert_eq!(rotated.narrow(2, 2, 16), patches);
        patches
    };
    let (queries, keys) = (rotated(), rotated());
    let products = queries.matmul(&keys.transpose(2, 3));
    let product = |query: [i64; 2], key: [i64; 2]| {
        let index = |[row, column]: [i64; 2]| 4 * row + column;
        products.double_value(&[0, 0, index(query), index(key)])
    };
    let near = |left: f64, right: f64| (left - right).abs() < 1e-5;
    assert!(near(product([0, 0], [1, 2]), product([2, 1], [3, 3])));
    assert!(!near(product([0, 0], [1, 2]), product([0, 0], [2, 1])));
    assert!(!near(product([0, 0], [0, 1]), product([0, 0], [1, 0])));
}

#[test]
fn invalid_shapes_and_sizes_are_errors() {
    let rotary = Rotary::new(8, 4, 2, Device::Cpu).unwrap();
    for size in [
        &[1, 1, 17, 8][..],
        &[1, 1, 16, 4],
        &[1, 16, 8],
        &[18, 8],
        &[],
    ] {
        let error = rotary.forward(&Tensor::zeros(size, (Kind::Float, Device::Cpu)));
        assert!(matches!(error, Err(DiffusionError::Shape { .. })));
    }
    for (head_width, side, in_context) in [(6, 4, 2), (0, 4, 2), (8, 0, 2), (8, 4, -1)] {
        let error = Rotary::new(head_width, side, in_context, Device::Cpu);
        assert!(matches!(error, Err(DiffusionError::Setting { .. })));
    }
}
