//! Tests of `runner metrics --rank`.

use crate::common::Playground;
use metrics::figures::Figure;
use report::ranking::Ranking;

fn rank<'a>(data: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let mut all = vec![
        "metrics", "--data", data, "--device", "cpu", "--images", "8",
    ];
    all.extend(["--resolution", "32"]);
    all.extend(more);
    all
}

#[test]
fn encoders_are_ordered_by_their_spatial_structure() {
    let place = Playground::new();
    let data = crate::common::repository().join("experiments/data/emoji64");
    let data = data.to_str().unwrap();
    let names = ["hog", "sift", "hog"];
    let outcome = place
        .run(&rank(
            data,
            &[&names[..], &["--rank", "--json", "order.json"]].concat(),
        ))
        .expect(0, &["place", "lds*", "8 images"]);
    let ranking: Ranking = serde_json::from_str(&place.read("order.json")).unwrap();
    assert_eq!((ranking.by, ranking.images), (Figure::Lds, 8));
    assert_eq!(ranking.encoders.len(), 2, "each encoder is ranked once");
    assert!(ranking.encoders[0].metrics.lds > ranking.encoders[1].metrics.lds);
    let lines: Vec<&str> = outcome.stdout.lines().collect();
    assert_eq!(lines.len(), 3);
    for (line, ranked) in lines[1..].iter().zip(&ranking.encoders) {
        assert!(line.contains(&ranked.encoder), "{line}");
        assert!(
            line.contains(&format!("{:.4}", ranked.metrics.lds)),
            "{line}"
        );
    }

    // The values equal those of the command without --rank.
    let plain = place.run(&rank(data, &["hog"])).expect(0, &["encoder,lds"]);
    let figures: Vec<&str> = plain.stdout.lines().nth(1).unwrap().split(',').collect();
    let hog = ranking
        .encoders
        .iter()
        .find(|ranked| ranked.encoder == "hog")
        .unwrap();
    assert_eq!(figures[1].parse::<f64>().unwrap(), hog.metrics.lds);

    let other = place
        .run(&rank(data, &["hog", "sift", "--rank=rmsc"]))
        .expect(0, &["rmsc*"]);
    let first = other.stdout.lines().nth(1).unwrap();
    let most = ranking.encoders.iter();
    let most = most
        .max_by(|a, b| a.metrics.rmsc.total_cmp(&b.metrics.rmsc))
        .unwrap();
    assert!(first.contains(&most.encoder), "{first}");
}

#[test]
fn errors_of_ranking_are_reported() {
    let place = Playground::new();
    let data = crate::common::repository().join("experiments/data/emoji64");
    let data = data.to_str().unwrap();
    place
        .run(&rank(data, &["hog", "--rank=magic"]))
        .expect(2, &["magic", "srss"]);
    place
        .run(&rank(data, &["hgo", "--rank"]))
        .expect(2, &["hgo", "encoders list"]);
    place
        .run(&rank(data, &["paper27", "--rank"]))
        .expect(2, &["not installed", "encoders list"]);
    place
        .run(&rank("nowhere", &["hog", "--rank"]))
        .expect(2, &["--data", "nowhere"]);
    place
        .run(&rank(data, &["hog", "--json", "a.json"]))
        .expect(2, &["--rank"]);
    place
        .run(&rank(data, &["hog", "--rank", "--json", "no/a.json"]))
        .expect(2, &["--json no/a.json", "no folder no"]);
    // An encoder that fails does not affect the ranking of the others.
    place.add_encoder("nan_tokens");
    place
        .run(&rank(data, &["nan_tokens", "hog", "--rank"]))
        .expect(1, &["error: nan_tokens", "1  hog"]);
}
