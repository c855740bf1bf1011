//! Tests of `runner visualize`: the sheets that it draws, and its errors.

use std::collections::BTreeSet;
use std::fs;
use std::io::Cursor;
use std::process::Command;

use crate::common::{Outcome, Playground, repository};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use image::{Rgb, RgbImage};

/// The colour of the largest value in viridis.
const TOP: Rgb<u8> = Rgb([0xFD, 0xE7, 0x25]);
/// Side of a map: images of 16 to 128 pixels are enlarged to it.
const CELL: u32 = 128;

fn data() -> String {
    let data = repository().join("experiments/data/emoji64");
    data.canonicalize().unwrap().to_string_lossy().into_owned()
}

/// Runs the command on the embedded data at 32 pixels.
fn visualize(place: &Playground, arguments: &[&str]) -> Outcome {
    let data = data();
    let mut all = vec!["visualize"];
    all.extend(arguments);
    all.extend(["--data", &data, "--resolution", "32", "--device", "cpu"]);
    place.run(&all)
}

fn size(place: &Playground, name: &str) -> (u32, u32) {
    image::open(place.path(name))
        .unwrap()
        .to_rgb8()
        .dimensions()
}

/// The picture with this title in an SVG.
fn embedded(svg: &str, title: &str) -> RgbImage {
    let document = roxmltree::Document::parse(svg).unwrap();
    let image = document
        .descendants()
        .filter(|node| node.tag_name().name() == "image")
        .find(|node| {
            let text = node.children().find_map(|child| child.text());
            text == Some(title)
        })
        .unwrap_or_else(|| panic!("no image `{title}`"));
    let href = image.attribute("href").unwrap();
    let png = href.strip_prefix("data:image/png;base64,").unwrap();
    let png = STANDARD.decode(png).unwrap();
    let decoded = image::ImageReader::new(Cursor::new(png));
    let decoded = decoded.with_guessed_format().unwrap().decode().unwrap();
    decoded.to_rgb8()
}

#[test]
fn the_sheet_grows_by_rows_blocks_and_columns() {
    let place = Playground::new();
    let sheet = |name: &str, encoders: &[&str], count: &str, anchors: &[&str]| {
        let mut arguments = encoders.to_vec();
        arguments.extend(["--count", count, "--out", name, "--anchors"]);
        arguments.extend(anchors);
        visualize(&place, &arguments).expect(0, &[name]);
        size(&place, name)
    };
    let (width, height) = sheet("one.png", &["good"], "1", &["1,1"]);
    assert!(width > 5 * CELL && width < 8 * CELL, "{width}");
    assert!(height > CELL && height < 2 * CELL, "{height}");
    // Two maps and the gaps between and beside them.
    let (wide, same) = sheet("anchors.png", &["good"], "1", &["1,1", "0.9,0.9"]);
    assert_eq!((wide - width, same), (2 * CELL + 4 + 13, height));
    let (same, high) = sheet("encoders.png", &["good", "good"], "1", &["1,1"]);
    assert_eq!((same, high - height), (width, CELL + 4));
    let (_, two) = sheet("images.png", &["good"], "2", &["1,1"]);
    let (_, three) = sheet("more.png", &["good"], "3", &["1,1"]);
    assert_eq!(three - two, two - height);
}

#[test]
fn encoders_joined_by_a_comma_have_separate_rows() {
    let place = Playground::new();
    visualize(
        &place,
        &["good,good_patch_only", "--count", "1", "--out", "a.svg"],
    )
    .expect(0, &[]);
    let svg = place.read("a.svg");
    for name in ["good", "good_patch_only"] {
        embedded(&svg, &format!("{name}, principal components, raw"));
    }
}

#[test]
fn the_svg_is_one_file_with_labels_as_text() {
    let place = Playground::new();
    let arguments = ["good", "hog", "--ids", "3,17", "--anchors", "2,1"];
    visualize(&place, &[&arguments[..], &["--out", "a.svg"]].concat()).expect(0, &["a.svg"]);
    visualize(&place, &[&arguments[..], &["--out", "a.png"]].concat()).expect(0, &["a.png"]);
    let svg = place.read("a.svg");
    let document = roxmltree::Document::parse(&svg).unwrap();
    let texts: Vec<&str> = document
        .descendants()
        .filter(|node| node.tag_name().name() == "text")
        .filter_map(|node| node.text())
        .map(str::trim)
        .collect();
    for wanted in [
        "good",
        "hog",
        "4 × 4 × 8",
        "raw",
        "normalised",
        "similarity to patch 2,1",
        "principal components",
        "cosine similarity",
        "1.0",
        "normalised: z-score over the patches, alpha 0.6",
    ] {
        assert!(texts.contains(&wanted), "no `{wanted}` in {texts:?}");
    }
    assert!(
        texts
            .iter()
            .any(|text| text.starts_with("emoji64/val 17, "))
    );
    // Two images, each with four maps for two encoders, and the colour bar.
    let images = document
        .descendants()
        .filter(|node| node.tag_name().name() == "image");
    assert_eq!(images.count(), 2 + 2 * 2 * 4 + 1);
    let addresses = svg.replace("http://www.w3.org/2000/svg", "");
    assert!(!addresses.contains("://"), "the file refers to another one");

    let root = document.root_element();
    let side = |name: &str| root.attribute(name).unwrap().parse::<u32>().unwrap();
    assert_eq!((side("width"), side("height")), size(&place, "a.png"));
}

#[test]
fn a_map_has_the_top_colour_at_its_anchor() {
    let place = Playground::new();
    let arguments = [
        "good",
        "hog",
        "--ids",
        "17",
        "--anchors",
        "0.6,0.4",
        "--out",
    ];
    visualize(&place, &[&arguments[..], &["a.svg"]].concat()).expect(0, &[]);
    let svg = place.read("a.svg");
    assert!(
        svg.contains(">\nsimilarity to anchor 1\n</text>"),
        "its patch depends on the encoder"
    );
    for (encoder, patches, row, column) in [("good", 4, 2, 1), ("hog", 16, 9, 6)] {
        for tokens in ["raw", "normalised"] {
            let title = format!("{encoder}, similarity to patch {row},{column}, {tokens}");
            let map = embedded(&svg, &title);
            assert_eq!(map.dimensions(), (CELL, CELL));
            let patch = CELL / patches;
            let (mut top, mut others) = (0, 0);
            for (x, y, colour) in map.enumerate_pixels() {
                let corner = map.get_pixel(x / patch * patch, y / patch * patch);
                assert_eq!(
                    colour, corner,
                    "{title}: a patch is one square of one colour"
                );
                if (y / patch, x / patch) == (row, column) {
                    assert_eq!(*colour, TOP, "{title}: {x} {y}");
                    top += 1;
                } else {
                    others += u32::from(*colour != TOP);
                }
            }
            assert_eq!(top, patch * patch);
            assert!(others > CELL, "{title}: one colour");
        }
    }
    visualize(&place, &[&arguments[..], &["b.svg", "--smooth"]].concat()).expect(0, &[]);
    let title = "good, principal components, raw";
    let colours = |file: &str| {
        let map = embedded(&place.read(file), title);
        let colours: BTreeSet<[u8; 3]> = map.pixels().map(|pixel| pixel.0).collect();
        colours.len()
    };
    let (squares, smooth) = (colours("a.svg"), colours("b.svg"));
    assert!(squares <= 16 && smooth > 16, "{squares} {smooth}");
}

#[test]
fn alpha_changes_the_normalised_maps_only() {
    let place = Playground::new();
    let svg = |alpha: &str| {
        let arguments = ["good", "--ids", "17", "--anchors", "1,2", "--out", "a.svg"];
        visualize(&place, &[&arguments[..], &["--alpha", alpha]].concat()).expect(0, &[]);
        place.read("a.svg")
    };
    let (none, most) = (svg("0.5"), svg("0.6"));
    let components =
        |svg: &str, tokens: &str| embedded(svg, &format!("good, principal components, {tokens}"));
    assert_eq!(components(&none, "raw"), components(&most, "raw"));
    let similarity = |svg: &str| embedded(svg, "good, similarity to patch 1,2, normalised");
    assert_ne!(similarity(&none), similarity(&most));
}

#[test]
fn two_runs_give_the_same_bytes() {
    let place = Playground::new();
    for extension in ["png", "svg"] {
        let files = ["a", "b"].map(|name| format!("{name}.{extension}"));
        for file in &files {
            visualize(&place, &["good", "hog", "--count", "3", "--out", file]).expect(0, &[]);
        }
        let [one, other] = files.map(|file| fs::read(place.path(&file)).unwrap());
        assert!(one == other, "{extension}");
    }
}

#[test]
fn image_files_are_drawn_with_their_names() {
    let place = Playground::new();
    let photo = |name: &str, width: u32| {
        let image = RgbImage::from_fn(width, 40, |x, y| Rgb([x as u8 * 3, y as u8 * 6, 90]));
        image.save(place.path(name)).unwrap();
    };
    photo("wide.png", 70);
    photo("high.jpg", 30);
    let arguments = [
        "visualize",
        "good",
        "--out",
        "a.svg",
        "--images",
        "wide.png",
        "high.jpg",
    ];
    place.run(&arguments).expect(0, &["a.svg"]);
    let svg = place.read("a.svg");
    assert_eq!(embedded(&svg, "wide.png").dimensions(), (256, 256));
    assert_ne!(embedded(&svg, "wide.png"), embedded(&svg, "high.jpg"));
    // Without a mask, the automatic anchor is the centre.
    embedded(&svg, "good, similarity to patch 2,2, raw");

    place.write("broken.png", "no image");
    let broken = |file: &str| {
        let arguments = [
            "visualize",
            "good",
            "--images",
            "wide.png",
            file,
            "--out",
            "b.png",
        ];
        place.run(&arguments).expect(1, &[file]);
        assert!(!place.path("b.png").exists());
    };
    broken("broken.png");
    broken("nowhere.png");
    place
        .run(&["visualize", "good", "--images", "wide.png", "--ids", "3"])
        .expect(2, &["--images", "--ids"]);
}

#[test]
fn an_unknown_encoder_is_reported_with_the_nearest_known_name() {
    let place = Playground::new();
    visualize(&place, &["good", "dinov2-vitb"]).expect(2, &["dinov2-vitb", "dinov2-vit-b"]);
    visualize(&place, &["good,hogg"]).expect(2, &["hogg", "did you mean hog"]);
    visualize(&place, &[","]).expect(2, &["ENCODER"]);
    place.run(&["visualize"]).expect(2, &["<ENCODER>"]);
    assert!(!place.path("visualize.png").exists());
}

#[test]
fn encoders_that_fail_are_named_and_the_others_drawn() {
    let place = Playground::new();
    place.add_encoder("nan_tokens");
    let hint = "cargo xtask export dinov2-vit-b";
    let arguments = ["dinov2-vit-b", "good", "nan_tokens", "--out", "a.svg"];
    visualize(&place, &arguments).expect(1, &[hint, "error: nan_tokens:", "NaN", "a.svg"]);
    let svg = place.read("a.svg");
    embedded(&svg, "good, principal components, raw");
    assert!(!svg.contains("dinov2-vit-b") && !svg.contains("nan_tokens"));

    visualize(&place, &["dinov2-vit-b"]).expect(1, &[hint, "nothing was drawn"]);
    assert!(!place.path("visualize.png").exists());
}

#[test]
fn anchors_are_checked_against_the_grid() {
    let place = Playground::new();
    let anchors = |anchor: &str, words: &[&str]| {
        visualize(&place, &["good", "--anchors", anchor]).expect(2, words);
    };
    anchors(
        "4,0",
        &["--anchors 4,0", "4x4", "good", "rows 0 to 3", "0.5,0.5"],
    );
    anchors("0,16", &["--anchors 0,16", "columns 0 to 3"]);
    anchors("8", &["--anchors", "'8'", "ROW,COLUMN", "auto"]);
    anchors("0.5,1.5", &["0.5,1.5", "0.0 to 1.0"]);
    assert!(!place.path("visualize.png").exists());
}

#[test]
fn a_path_that_cannot_be_written_is_named() {
    let place = Playground::new();
    visualize(&place, &["good", "--out", "nowhere/a.png"]).expect(2, &["--out nowhere/a.png"]);
    fs::create_dir(place.path("folder.png")).unwrap();
    visualize(&place, &["good", "--out", "folder.png"]).expect(2, &["--out folder.png", "folder"]);
    for name in ["a.gif", "a", "png"] {
        let outcome = visualize(&place, &["good", "--out", name]);
        outcome.expect(2, &[&format!("--out {name}"), ".png", ".svg"]);
    }
    // A limit of 1 KiB per file simulates a full disk.
    let program = env!("CARGO_BIN_EXE_irepa");
    let script = format!(
        "trap '' XFSZ; ulimit -f 1; exec '{program}' visualize good --data '{}' --out a.png",
        data()
    );
    let output = Command::new("bash")
        .args(["-c", &script])
        .current_dir(place.path(""))
        .env("IREPA_ENCODERS", place.path("encoders"))
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(
        stderr.contains("--out") && stderr.contains("a.png"),
        "{stderr}"
    );
    let files = fs::read_dir(place.path("")).unwrap();
    let left = files.filter(|file| {
        let name = file.as_ref().unwrap().file_name();
        name.to_string_lossy().contains("a.png")
    });
    assert_eq!(left.count(), 0, "a partial file was left");
}

#[test]
fn invalid_settings_are_reported_with_the_allowed_values() {
    let place = Playground::new();
    let refused = |arguments: &[&str], words: &[&str]| {
        visualize(&place, &[&["good"], arguments].concat()).expect(2, words);
    };
    refused(
        &["--ids", "3,100000"],
        &["--ids 100000", "emoji64/val", "0 to "],
    );
    refused(&["--count", "0"], &["--count 0"]);
    refused(&["--ids", "1", "--count", "2"], &["--ids", "--count"]);
    refused(&["--alpha", "nan"], &["--alpha", "finite"]);
    refused(&["--split", "vall"], &["--data", "vall", "`val`"]);
    refused(&["--count", "130"], &["130 images", "16384"]);
    place
        .run(&["visualize", "good", "--data", "nowhere"])
        .expect(2, &["--data", "nowhere"]);
    place
        .run(&["visualize", "good", "--resolution", "0"])
        .expect(2, &["--resolution", "1..=8192"]);
    place
        .run(&["visualize", "good", "--device", "gpu"])
        .expect(2, &["auto, cpu, cuda or cuda:N"]);
    place
        .run(&["visualize", "--help"])
        .expect(0, &["Example:", "runner visualize "]);
    assert!(!place.path("visualize.png").exists());
}
