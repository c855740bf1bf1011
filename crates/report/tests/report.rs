//! Tests the report of a run folder with the files of a sweep. To view the report, name a folder in which it is kept:
//! `RUNNER_REPORT_FOLDER=FOLDER cargo test -p report --test report a_whole_sweep`.

use std::fs;
use std::path::{Path, PathBuf};

use metrics::figures::{Figure, File, Kind};
use ndarray::Array4;
use report::image_grid::{GridLayout, write_grid};
use report::results::{ResultRow, Status, read_csv, write_csv};
use report::{ReportError, build};

const STEPS: u64 = 1000;
const JUDGE: &str = "efficientnet-lite2";
/// Name, LDS, and a value that is unrelated to the quality.
const ENCODERS: [(&str, f64, f64); 5] = [
    ("hog", 0.46, 0.61),
    ("sift", 0.41, 0.58),
    ("efficientnet-lite0", 0.35, 0.74),
    ("dinov2-vit-b", 0.52, 0.66),
    ("clip-vit-L", 0.22, 0.79),
];
const MISSING: [&str; 7] = [
    "dinov3-vit-b16",
    "dinov3-vit-7b16",
    "webssl-vit-dino300m_full2b_224",
    "pe-vit-g",
    "mae-vit-l",
    "siglip2-vit-so400m",
    "mocov3-vit-b",
];

/// Pseudo-random numbers in -1..1 that are the same on every machine.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as f64 / (1_u64 << 52) as f64 - 1.0
    }
}

fn row(encoder: &str, recipe: &str) -> ResultRow {
    let cell = match recipe {
        "none" => "sit-xs4.none.s0".to_owned(),
        _ => format!("sit-xs4.{recipe}.{encoder}.s0"),
    };
    ResultRow {
        encoder: encoder.into(),
        recipe: recipe.into(),
        model: "sit-xs4".into(),
        variant: "velocity".into(),
        steps: Some(STEPS),
        ..ResultRow::empty(&cell, Status::Done)
    }
}

/// Writes the folder of a finished cell and returns its row.
fn finished(run: &Path, encoder: &str, recipe: &str, structure: f64, other: f64) -> ResultRow {
    let mut row = row(encoder, recipe);
    let seed = row.cell.bytes().fold(7_u64, |seed, byte| {
        seed.wrapping_mul(31).wrapping_add(u64::from(byte))
    });
    let mut noise = Noise(seed);
    let aligned = recipe != "none";
    let strength = match recipe {
        "irepa" => 0.075,
        "repa" => 0.045,
        _ => 0.0,
    };
    let gain = strength * (structure + 0.1);
    row.fd_encoder = JUDGE.into();
    row.figures
        .set(Figure::Fd, 31.5 - 160.0 * gain + 0.5 * noise.next());
    row.figures.set(
        Figure::StepsPerSecond,
        if aligned { 9.1 } else { 11.2 } + 0.2 * noise.next(),
    );
    row.figures
        .set(Figure::PeakMemory, if aligned { 812.0 } else { 655.0 });
    if aligned {
        row.figures.set(Figure::Lds, structure);
        row.figures.set(Figure::Cds, 0.5 * structure + 0.03 * other);
        row.figures.set(Figure::Srss, other - 0.4 * structure);
        row.figures.set(Figure::Rmsc, 0.9 - other);
    }
    let folder = run.join("cells").join(&row.cell);
    let (lines, losses) = curve(gain, aligned.then_some(structure), &mut noise);
    row.figures.set(Figure::DenoisingLoss, losses.0);
    row.figures.set(Figure::AlignmentLoss, losses.1);
    fs::create_dir_all(folder.join("samples")).unwrap();
    fs::write(folder.join("metrics.jsonl"), lines).unwrap();
    fs::write(
        folder.join("config.toml"),
        format!("[alignment]\nencoder = \"{encoder}\"\n\n[model]\nname = \"sit-xs4\"\n"),
    )
    .unwrap();
    fs::write(
        folder.join("result.json"),
        r#"{"hash": "0123456789abcdef", "hardware": "2 CPU cores, 24 GiB", "started_at": 1774102259, "finished_at": 1774102799}"#,
    )
    .unwrap();
    let grid = folder.join("samples/grid-0001000.png");
    write_grid(
        &grid,
        discs(&mut noise).view(),
        GridLayout::for_images(16, 64, 64),
    )
    .unwrap();
    row
}

/// Lines of `metrics.jsonl`, and the last denoising and alignment loss.
fn curve(gain: f64, structure: Option<f64>, own: &mut Noise) -> (String, (f64, Option<f64>)) {
    let mut batches = Noise(99);
    let (mut lines, mut last) = (String::new(), (0.0, None));
    for step in (10..=STEPS).step_by(10) {
        let time = step as f64;
        let learnt = 1.0 - (-time / 350.0).exp();
        let denoising = 0.24 + 1.3 * (-time / 45.0).exp() + 1.6 / (time + 20.0).sqrt()
            - gain * learnt
            + 0.012 * batches.next()
            + 0.002 * own.next();
        let alignment = structure
            .map(|s| -(0.35 + 0.5 * s) * (1.0 - (-time / 200.0).exp()) + 0.01 * own.next());
        let loss = denoising + alignment.unwrap_or(0.0);
        let alignment_text = alignment.map_or("null".to_owned(), |loss| loss.to_string());
        lines += &format!(
            "{{\"step\":{step},\"loss\":{loss},\"denoising_loss\":{denoising},\
             \"alignment_loss\":{alignment_text},\"grad_norm\":0.8,\"lr\":0.0001,\"steps_per_s\":9.1}}\n"
        );
        last = (denoising, alignment);
    }
    (lines, last)
}

/// Sixteen coloured discs on grey.
fn discs(noise: &mut Noise) -> Array4<u8> {
    let parameters: Vec<[f64; 5]> = (0..16)
        .map(|_| std::array::from_fn(|_| 0.5 + 0.5 * noise.next()))
        .collect();
    Array4::from_shape_fn((16, 3, 64, 64), |(image, channel, y, x)| {
        let [x0, y0, red, green, blue] = parameters[image];
        let (dx, dy) = (x as f64 - 22.0 - 20.0 * x0, y as f64 - 22.0 - 20.0 * y0);
        let inside = 1.0 / (1.0 + ((dx.hypot(dy) - 18.0) * 0.8).exp());
        let colour = [red, green, blue][channel] * (1.0 - dy / 60.0);
        (60.0 + 190.0 * inside * colour).clamp(0.0, 255.0) as u8
    })
}

/// Writes the run folder of five encoders with two recipes and a baseline; one cell has failed, and the cells of missing
/// encoders are skipped.
fn sweep(run: &Path) -> Vec<ResultRow> {
    fs::create_dir_all(run).unwrap();
    fs::write(
        run.join("plan.toml"),
        "name = \"encoders\"\ndescription = \"Which encoder makes a good alignment target?\"\n\
         [[cell]]\nid = \"sit-xs4.none.s0\"\n",
    )
    .unwrap();
    let mut rows = vec![finished(run, "none", "none", 0.0, 0.0)];
    for (encoder, structure, other) in ENCODERS {
        for recipe in ["repa", "irepa"] {
            rows.push(finished(run, encoder, recipe, structure, other));
        }
    }
    let failed = rows
        .iter_mut()
        .find(|row| row.cell == "sit-xs4.repa.clip-vit-L.s0");
    let failed = failed.unwrap();
    failed.status = Status::Failed;
    failed.steps = Some(430);
    failed.reason = "loss is NaN at step 431; samples 17, 204 and 1188 were in the batch".into();
    failed.figures.remove(Figure::Fd);
    failed.figures.remove(Figure::DenoisingLoss);
    let folder = run.join("cells").join(&failed.cell);
    let lines = fs::read_to_string(folder.join("metrics.jsonl")).unwrap();
    let kept: Vec<&str> = lines.lines().take(43).collect();
    fs::write(
        folder.join("metrics.jsonl"),
        kept.join("\n") + "\n{\"step\":440,\"lo",
    )
    .unwrap();
    for encoder in MISSING {
        for recipe in ["repa", "irepa"] {
            let mut row = row(encoder, recipe);
            row.status = Status::Skipped;
            row.steps = None;
            row.reason =
                format!("weights are not installed; get them with `cargo xtask encoder {encoder}`");
            rows.push(row);
        }
    }
    write_csv(&run.join("results.csv"), &rows).unwrap();
    rows
}

fn page(run: &Path) -> String {
    fs::read_to_string(build(run).unwrap().html).unwrap()
}

/// The text of the page, without markup.
fn text(page: &str) -> String {
    let mut text = String::new();
    let mut inside = true;
    for letter in page.chars() {
        match letter {
            '<' => inside = false,
            '>' => inside = true,
            _ if inside => text.push(letter),
            _ => {}
        }
    }
    text
}

#[test]
fn a_whole_sweep_is_reported_on_one_page_with_plots() {
    let temporary = tempfile::tempdir().unwrap();
    let run = std::env::var_os("RUNNER_REPORT_FOLDER")
        .map_or_else(|| temporary.path().join("encoders"), PathBuf::from);
    let rows = sweep(&run);
    let report = build(&run).unwrap();
    assert_eq!((report.done, report.failed, report.skipped), (10, 1, 14));
    assert_eq!(
        report.notes,
        [
            "cells/sit-xs4.repa.clip-vit-L.s0/metrics.jsonl: the last line (44) is incomplete and was ignored"
        ]
    );
    let names: Vec<_> = report
        .plots
        .iter()
        .map(|path| path.file_name().unwrap().to_str().unwrap())
        .collect();
    assert_eq!(
        names,
        [
            "overview-lds-sit-xs4.svg",
            "overview-cds-sit-xs4.svg",
            "overview-srss-sit-xs4.svg",
            "overview-rmsc-sit-xs4.svg",
            "overview-gain-sit-xs4.svg",
            "quality-sit-xs4.svg",
            "denoising-loss-sit-xs4.svg",
            "loss-difference-sit-xs4.svg",
            "alignment-loss-sit-xs4.svg",
            "metrics-sit-xs4.svg"
        ]
    );
    let page = fs::read_to_string(&report.html).unwrap();
    for row in rows.iter().filter(|row| row.status == Status::Done) {
        assert!(page.contains(&row.cell), "{}", row.cell);
    }
    let text = text(&page);
    assert!(text.contains("10 done, 1 failed, 14 skipped"));
    assert!(text.contains("2026-03-21 14:10 UTC to 2026-03-21 14:19 UTC"));
    assert!(text.contains("2 CPU cores, 24 GiB"));
    assert!(text.contains("Which encoder makes a good alignment target?"));
    assert!(text.contains("loss is NaN at step 431"));
    assert!(text.contains("cargo xtask encoder NAME"));
    assert!(text.contains("encoder = &quot;hog&quot;"));
    assert_eq!(page.matches("data:image/png;base64,").count(), 11);
}

/// The cells after the first in the row of a table that starts with `first`.
fn table_row(page: &str, table: &str, first: &str) -> Vec<String> {
    let table = page.split_once(table).unwrap().1;
    let row = table
        .split_once(&format!("<tr><td>{first}</td>"))
        .unwrap()
        .1;
    let row = row.split_once("</tr>").unwrap().0;
    row.split("</td>").map(text).collect()
}

#[test]
fn the_better_recipe_of_each_encoder_is_marked() {
    let run = tempfile::tempdir().unwrap();
    let rows = sweep(run.path());
    let page = page(run.path());
    let matrix = "<h3>Frechet distance, sit-xs4</h3>";
    for (encoder, ..) in ENCODERS {
        let of = |recipe: &str| {
            let cell = format!("sit-xs4.{recipe}.{encoder}.s0");
            rows.iter()
                .find(|row| row.cell == cell)
                .unwrap()
                .get(Figure::Fd)
        };
        let found = table_row(&page, matrix, encoder);
        let irepa = of("irepa").unwrap();
        assert!(found[0].ends_with(&format!("{irepa:.2}")), "{found:?}");
        let Some(repa) = of("repa") else {
            assert_eq!((&*found[1], &*found[2]), ("", ""));
            assert!(
                !found[0].contains('\u{25cf}'),
                "there is no other recipe to compare with"
            );
            continue;
        };
        assert!(found[1].ends_with(&format!("{repa:.2}")), "{found:?}");
        let marks = [0, 1].map(|index: usize| found[index].contains('\u{25cf}'));
        assert_eq!(marks, [irepa < repa, repa < irepa], "{found:?}");
        assert!(
            found[2].ends_with(&format!("{:.2}", (irepa - repa).abs())),
            "{found:?}"
        );
    }
}

#[test]
fn distances_measured_during_training_are_plotted() {
    let run = tempfile::tempdir().unwrap();
    sweep(run.path());
    let plot = run.path().join("plots/distance-sit-xs4.svg");
    page(run.path());
    assert!(!plot.exists());
    for (cell, last) in [("sit-xs4.irepa.hog.s0", 21.5), ("sit-xs4.none.s0", 30.25)] {
        let path = run.path().join("cells").join(cell).join("metrics.jsonl");
        let lines = fs::read_to_string(&path).unwrap();
        let with = |step: u64, fd: f64| {
            let old = format!("{{\"step\":{step},");
            (old.clone(), format!("{old}\"fd\":{fd},"))
        };
        let (first, first_with) = with(500, last + 9.0);
        let (second, second_with) = with(1000, last);
        let lines = lines
            .replace(&first, &first_with)
            .replace(&second, &second_with);
        fs::write(&path, lines).unwrap();
    }
    page(run.path());
    let svg = fs::read_to_string(plot).unwrap();
    assert!(svg.contains("hog, irepa 21.50") && svg.contains("baseline 30.25"));
    assert!(!svg.contains("sift"));
}

#[test]
fn panels_without_values_state_the_reason() {
    let run = tempfile::tempdir().unwrap();
    let mut rows = sweep(run.path());
    let svg = |rows: &[ResultRow]| {
        write_csv(&run.path().join("results.csv"), rows).unwrap();
        build(run.path()).unwrap();
        fs::read_to_string(run.path().join("plots/metrics-sit-xs4.svg")).unwrap()
    };
    let first = svg(&rows);
    assert!(first.contains("no linear probe was trained"));
    assert!(!first.contains("needs foreground masks"));
    for row in &mut rows {
        row.figures.remove(Figure::Srss);
        row.figures.set(
            Figure::LinearProbe,
            row.get(Figure::Lds).map(|lds| 0.3 + lds),
        );
    }
    let second = svg(&rows);
    assert!(second.contains("needs foreground masks") && second.contains("n = 5"));
    assert!(!second.contains("no linear probe"));
}

#[test]
fn the_order_before_training_is_compared_with_the_result() {
    let run = tempfile::tempdir().unwrap();
    sweep(run.path());
    let heading = "<h3>The order before training, sit-xs4</h3>";
    let first = page(run.path());
    // In the fixture, LDS determines the order of the gains; dinov2-vit-b has the highest.
    let row = table_row(&first, heading, "irepa");
    assert_eq!((&*row[0], &*row[1]), ("lds", "5"));
    let rho: f64 = row[2].parse().unwrap();
    assert!(rho > 0.8, "{row:?}");
    assert!(row[3].contains(" to "), "{row:?}");
    assert_eq!((&*row[4], &*row[5]), ("dinov2-vit-b", "1 of 5"));
    assert!(text(&first).contains("that of the metrics in the table"));

    // A ranking from before the sweep with the reverse order.
    let encoders: Vec<String> = ENCODERS
        .iter()
        .map(|(name, lds, _)| {
            let metrics = format!("\"lds\":{},\"cds\":0.1,\"srss\":null,\"rmsc\":0.2", -lds);
            format!("{{\"encoder\":\"{name}\",{metrics},\"places\":{{}}}}")
        })
        .collect();
    let ranking = format!(
        "{{\"by\":\"lds\",\"data\":\"emoji64\",\"fingerprint\":\"\",\"images\":300,\
         \"resolution\":64,\"encoders\":[{}]}}",
        encoders.join(",")
    );
    fs::write(run.path().join("ranking.json"), ranking).unwrap();
    let second = page(run.path());
    let row = table_row(&second, heading, "irepa");
    let reversed: f64 = row[2].replace('\u{2212}', "-").parse().unwrap();
    assert_eq!(reversed, -rho);
    assert_eq!((&*row[4], &*row[5]), ("clip-vit-L", "5 of 5"));
    assert!(text(&second).contains("computed on 300 images of emoji64"));

    fs::write(run.path().join("ranking.json"), "{").unwrap();
    let report = build(run.path()).unwrap();
    assert!(
        report
            .notes
            .iter()
            .any(|note| note.starts_with("ranking.json"))
    );
}

#[test]
fn encoder_sheets_and_hashes_are_on_the_page() {
    let run = tempfile::tempdir().unwrap();
    sweep(run.path());
    assert!(!page(run.path()).contains("What the encoders see"));
    let folder = run.path().join("encoders");
    fs::create_dir(&folder).unwrap();
    let pictures = Array4::from_elem((1, 3, 20, 30), 7);
    let layout = GridLayout {
        columns: 1,
        upscale: 1,
        gap: 0,
    };
    write_grid(&folder.join("hog.png"), pictures.view(), layout).unwrap();
    fs::write(folder.join("sift.png"), "no picture").unwrap();
    let report = build(run.path()).unwrap();
    let page = fs::read_to_string(&report.html).unwrap();
    assert!(page.contains("<figure><h3>hog</h3><img width=\"30\" height=\"20\""));
    assert!(!page.contains("<h3>sift</h3>"));
    assert!(
        report
            .notes
            .iter()
            .any(|note| note.starts_with("encoders/sift.png"))
    );
    let row = table_row(&page, "<section id=\"configurations\">", "sit-xs4.none.s0");
    assert_eq!(row[0], "0123456789abcdef");
}

#[test]
fn findings_state_the_numbers_of_the_table() {
    let run = tempfile::tempdir().unwrap();
    let rows = sweep(run.path());
    let text = text(&page(run.path()));
    let fd = |cell: &str| {
        rows.iter()
            .find(|row| row.cell == cell)
            .unwrap()
            .get(Figure::Fd)
            .unwrap()
    };
    let (best, best_fd) = rows
        .iter()
        .filter_map(|row| Some((row, row.get(Figure::Fd)?)))
        .min_by(|left, right| left.1.total_cmp(&right.1))
        .unwrap();
    let baseline = fd("sit-xs4.none.s0");
    assert!(text.contains(&format!("{} with {best_fd:.2}", best.cell)));
    assert!(text.contains(&format!(
        "the baseline of the same model and seed has {baseline:.2} (\u{2212}{:.2}, \u{2212}{:.1} %)",
        baseline - best_fd,
        (baseline - best_fd) / baseline * 100.0
    )));
    let gains: Vec<f64> = ENCODERS
        .iter()
        .map(|(encoder, ..)| fd(&format!("sit-xs4.irepa.{encoder}.s0")) - baseline)
        .collect();
    let mean = gains.iter().sum::<f64>() / 5.0;
    assert!(text.contains(&format!(
        "Frechet distance lower in 5 of 5 cells (mean change \u{2212}{:.2}",
        -mean
    )));
    assert!(text.contains(
        "By encoder, averaged over seeds, the Frechet distance is lower with 5 of 5 (sign test, p = 0.0625)."
    ));
    assert!(text.contains("One seed per configuration"));
}

#[test]
fn spatial_metrics_are_compared_with_the_linear_probe() {
    let run = tempfile::tempdir().unwrap();
    let mut rows = sweep(run.path());
    for (index, row) in rows.iter_mut().enumerate() {
        // Unrelated to the distance.
        row.figures
            .set(Figure::LinearProbe, (index * 7 % 5) as f64 / 5.0);
    }
    write_csv(&run.path().join("results.csv"), &rows).unwrap();
    let text = text(&page(run.path()));
    let column = |figure: Figure| -> Vec<f64> {
        let rows = rows.iter().filter(|row| row.recipe == "irepa");
        let both = rows.filter(|row| row.get(Figure::Fd).is_some());
        both.filter_map(|row| row.get(figure)).collect()
    };
    let r = |figure: Figure| {
        metrics::statistics::pearson(&column(figure), &column(Figure::Fd))
            .unwrap()
            .abs()
    };
    let difference = r(Figure::Lds) - r(Figure::LinearProbe);
    let sign = if difference < 0.0 { '\u{2212}' } else { '+' };
    assert!(text.contains("Spatial metrics against linear probing, irepa"));
    assert!(
        text.contains(&format!(
            "minus |r| of the linear probe, over 5 encoders, with 95 % bootstrap intervals: lds {sign}{:.2} [",
            difference.abs()
        )),
        "{difference}"
    );
    // One cell of the other recipe failed.
    assert!(!text.contains("Spatial metrics against linear probing, repa"));
}

#[test]
fn correlations_have_their_interval_and_their_number_of_encoders() {
    let run = tempfile::tempdir().unwrap();
    let mut rows = sweep(run.path());
    let text_of = |run: &Path| text(&page(run));
    let all = text_of(run.path());
    assert!(all.contains("irepa: r = \u{2212}0.9"), "five encoders");
    assert!(all.contains("n = 5"));
    assert!(
        all.contains("repa: n = 4: too few for r"),
        "one cell failed"
    );

    rows.retain(|row| !["dinov2-vit-b", "hog"].contains(&row.encoder.as_str()));
    write_csv(&run.path().join("results.csv"), &rows).unwrap();
    let few = text_of(run.path());
    assert!(few.contains("irepa: n = 3: too few for r"));
    let svg = fs::read_to_string(run.path().join("plots/overview-lds-sit-xs4.svg")).unwrap();
    assert!(svg.contains("irepa: n = 3: too few for r"));
    // The points, and the marker of the recipe.
    assert_eq!(svg.matches("<circle").count(), 3 + 1);
    assert!(few.contains("repa: n = 2: too few for r"));
    assert!(few.contains("No correlation is claimed from 3 encoders."));
    assert!(!few.contains("repa: r = "));
}

#[test]
fn the_page_starts_with_what_predicts_quality_and_the_gain_by_encoder() {
    let run = tempfile::tempdir().unwrap();
    sweep(run.path());
    let page = page(run.path());
    let section = page.split("<section").nth(1).unwrap();
    assert!(section.contains("What predicts quality"));
    let text = text(section);
    assert!(text.contains("irepa: r = \u{2212}0."), "{text}");
    // One encoder has no finished cell with `repa`.
    assert!(text.contains("better with 4 of 4 encoders"), "{text}");
    assert!(!text.contains("clip-vit-L"), "{text}");
}

#[test]
fn cells_that_have_not_run_yet_are_counted() {
    let run = tempfile::tempdir().unwrap();
    sweep(run.path());
    assert!(!text(&page(run.path())).contains("not run yet"));
    let plan = "name = \"encoders\"\n[[cell]]\nid = \"sit-xs4.none.s0\"\n[[cell]]\nid = \"sit-xs4.none.s1\"\n";
    fs::write(run.path().join("plan.toml"), plan).unwrap();
    assert!(text(&page(run.path())).contains("14 skipped, 1 not run yet"));
}

#[test]
fn the_same_folder_yields_the_same_bytes() {
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    sweep(first.path());
    sweep(second.path());
    assert_eq!(page(first.path()), page(second.path()));
    let svg = |run: &Path| fs::read(run.join("plots/metrics-sit-xs4.svg")).unwrap();
    assert_eq!(svg(first.path()), svg(second.path()));
    let before = page(first.path());
    assert_eq!(page(first.path()), before, "a second build changes nothing");
}

#[test]
fn the_page_needs_no_network_and_its_plots_are_text() {
    let run = tempfile::tempdir().unwrap();
    sweep(run.path());
    let page = page(run.path());
    let addresses = page.replace("http://www.w3.org/2000/svg", "");
    assert!(
        !addresses.contains("://"),
        "no address but the SVG namespace"
    );
    assert!(!page.contains("src=\"/") && !page.contains("@import"));
    let svg = fs::read_to_string(run.path().join("plots/quality-sit-xs4.svg")).unwrap();
    assert!(svg.contains(">\nefficientnet-lite0\n</text>"));
    assert!(svg.contains("font-family=\"sans-serif\""));
    assert!(svg.contains("prefers-color-scheme: dark"));
}

#[test]
fn damaged_files_are_noted_and_the_rest_is_shown() {
    let run = tempfile::tempdir().unwrap();
    sweep(run.path());
    let cells = run.path().join("cells");
    let break_file = |file: &str, bytes: &[u8]| fs::write(cells.join(file), bytes).unwrap();
    break_file("sit-xs4.repa.hog.s0/metrics.jsonl", b"\xff\xfe\n{}\n17\n");
    break_file("sit-xs4.irepa.hog.s0/samples/grid-0001000.png", b"\x89PNG");
    break_file("sit-xs4.repa.sift.s0/result.json", b"{");
    fs::remove_file(cells.join("sit-xs4.irepa.sift.s0/config.toml")).unwrap();
    fs::remove_dir_all(cells.join("sit-xs4.irepa.efficientnet-lite0.s0")).unwrap();
    fs::write(run.path().join("plan.toml"), "name = ").unwrap();

    let report = build(run.path()).unwrap();
    for file in [
        "plan.toml",
        "sit-xs4.repa.hog.s0/metrics.jsonl: 3 unreadable lines",
        "sit-xs4.irepa.hog.s0/samples/grid-0001000.png",
        "sit-xs4.repa.sift.s0/result.json",
        "sit-xs4.irepa.sift.s0/config.toml: missing",
        "sit-xs4.irepa.efficientnet-lite0.s0: the folder is missing",
    ] {
        let noted = report.notes.iter().any(|note| note.contains(file));
        assert!(noted, "{file}: {:?}", report.notes);
    }
    let text = text(&fs::read_to_string(report.html).unwrap());
    assert!(text.contains("Some files could not be read"));
    assert_eq!(report.plots.len(), 10);
}

#[test]
fn names_are_escaped_and_cannot_leave_the_folder() {
    let run = tempfile::tempdir().unwrap();
    let mut rows = sweep(run.path());
    rows[1].encoder = "<script>alert('x')</script>&\u{1b}".into();
    rows[2].recipe = "\"><img src=x>".into();
    rows[3].cell = "../../etc".into();
    rows[4].model = "../<b>".into();
    rows[5].variant = "</svg></style>".into();
    write_csv(&run.path().join("results.csv"), &rows).unwrap();
    let report = build(run.path()).unwrap();
    let page = fs::read_to_string(&report.html).unwrap();
    assert_eq!(
        page.matches("<script>").count(),
        1,
        "only the script of the page itself"
    );
    for markup in ["<img src=x", "<b>", "</svg></style>"] {
        assert!(!page.contains(markup), "{markup}");
    }
    let notes = &report.notes;
    assert!(
        notes
            .iter()
            .any(|note| note.contains("`../../etc` is not the name of a folder"))
    );
    for plot in &report.plots {
        assert_eq!(plot.parent().unwrap(), run.path().join("plots"));
    }
}

#[test]
fn a_run_without_finished_cells_is_reported() {
    let run = tempfile::tempdir().unwrap();
    for rows in [
        vec![],
        vec![ResultRow {
            status: Status::Skipped,
            reason: "no weights".into(),
            ..row("mae-vit-l", "repa")
        }],
    ] {
        write_csv(&run.path().join("results.csv"), &rows).unwrap();
        let report = build(run.path()).unwrap();
        assert!(report.plots.is_empty());
        assert_eq!(report.skipped, rows.len());
        let text = text(&fs::read_to_string(report.html).unwrap());
        assert!(text.contains("No cell has finished yet."));
    }
}

#[test]
fn without_a_baseline_no_gain_is_claimed() {
    let run = tempfile::tempdir().unwrap();
    let mut rows = sweep(run.path());
    rows.remove(0);
    write_csv(&run.path().join("results.csv"), &rows).unwrap();
    let text = text(&page(run.path()));
    assert!(text.contains("there is no finished baseline of the same model and seed"));
    assert!(text.contains("so the gain is unknown"));
    assert!(
        !run.path()
            .join("plots/loss-difference-sit-xs4.svg")
            .exists()
    );
}

#[test]
fn a_baseline_with_the_lowest_distance_is_reported_as_such() {
    let run = tempfile::tempdir().unwrap();
    let mut rows = sweep(run.path());
    rows[0].figures.set(Figure::Fd, 1.5);
    write_csv(&run.path().join("results.csv"), &rows).unwrap();
    let text = text(&page(run.path()));
    assert!(text.contains(
        "sit-xs4.none.s0 with 1.500, the baseline without alignment; no aligned cell is lower."
    ));
    assert!(text.contains("Frechet distance lower in 0 of 5 cells (mean change +"));
}

#[test]
fn seeds_are_averaged_before_correlations_are_computed() {
    let run = tempfile::tempdir().unwrap();
    let mut rows = sweep(run.path());
    let seed_one: Vec<ResultRow> = rows
        .iter()
        .filter(|row| row.status == Status::Done)
        .map(|row| {
            let mut other = row.clone();
            other.cell = row.cell.replace("s0", "s1");
            other.seed = 1;
            let fd = row.get(Figure::Fd);
            other.figures.set(Figure::Fd, fd.map(|fd| fd + 1.0));
            other
        })
        .collect();
    rows.extend(seed_one);
    write_csv(&run.path().join("results.csv"), &rows).unwrap();
    let text = text(&page(run.path()));
    assert!(text.contains("n = 5") && !text.contains("n = 10"));
    assert!(text.contains("Up to 2 seeds per configuration"));
}

#[test]
fn values_that_are_not_finite_do_not_stop_the_report() {
    let run = tempfile::tempdir().unwrap();
    let mut rows = sweep(run.path());
    rows[1].figures.set(Figure::Fd, f64::NAN);
    rows[3].figures.set(Figure::Fd, f64::INFINITY);
    rows[3].figures.set(Figure::Lds, -1e308);
    rows[4].figures.set(Figure::DenoisingLoss, 1e308);
    for row in &mut rows {
        row.figures.set(Figure::Rmsc, 0.5);
    }
    write_csv(&run.path().join("results.csv"), &rows).unwrap();
    let text = text(&page(run.path()));
    assert!(text.contains("n = 5, r undefined"));
    assert!(!text.contains("NaN,") && !text.contains("inf,"));
}

#[test]
fn each_model_has_its_own_plots() {
    let run = tempfile::tempdir().unwrap();
    let mut rows = sweep(run.path());
    let half = rows.len() / 2;
    for row in &mut rows[..half] {
        row.model = "sit-xs2".into();
    }
    write_csv(&run.path().join("results.csv"), &rows).unwrap();
    let report = build(run.path()).unwrap();
    for model in ["sit-xs2", "sit-xs4"] {
        let path = run.path().join(format!("plots/denoising-loss-{model}.svg"));
        assert!(
            model == "sit-xs4" || report.plots.contains(&path),
            "{path:?}"
        );
    }
}

#[test]
fn every_figure_of_the_results_is_a_column_of_the_file_and_of_the_page() {
    let run = tempfile::tempdir().unwrap();
    let mut rows = sweep(run.path());
    for (index, figure) in Figure::in_file(File::Results).enumerate() {
        for (cell, row) in rows.iter_mut().enumerate() {
            row.figures
                .set(figure, 100.0 + index as f64 + 0.5 * cell as f64);
        }
    }
    write_csv(&run.path().join("results.csv"), &rows).unwrap();
    let csv = fs::read_to_string(run.path().join("results.csv")).unwrap();
    let header: Vec<&str> = csv.lines().next().unwrap().split(',').collect();
    let page = page(run.path());
    let table = page.split_once("<h3>All cells</h3>").unwrap().1;
    let headings = table.split_once("</thead>").unwrap().0;
    for figure in Figure::in_file(File::Results) {
        assert!(header.contains(&figure.name()), "{figure}");
        let heading = format!(
            "title=\"{}\">{}",
            figure.title(),
            figure.name().replace('_', "_<wbr>")
        );
        assert!(headings.contains(&heading), "{figure} in {headings}");
        let value = rows[0].get(figure).unwrap();
        assert!(
            table.contains(&format!("data-value=\"{value}\"")),
            "{figure}"
        );
    }
    for figure in Figure::of_kind(Kind::Spatial).chain(Figure::of_kind(Kind::Probe)) {
        let plot = fs::read_to_string(run.path().join("plots/metrics-sit-xs4.svg")).unwrap();
        assert!(plot.contains(figure.title()), "{figure}");
    }
    for (read, written) in read_csv(&run.path().join("results.csv"))
        .unwrap()
        .iter()
        .zip(&rows)
    {
        assert_eq!(read, written);
    }
}

#[test]
fn a_missing_results_file_is_named() {
    let run = tempfile::tempdir().unwrap();
    let error = build(run.path()).unwrap_err();
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(source.contains("results.csv"), "{source}");
}

#[test]
fn a_page_that_cannot_be_written_is_named() {
    let run = tempfile::tempdir().unwrap();
    write_csv(&run.path().join("results.csv"), &[]).unwrap();
    fs::create_dir(run.path().join("report.html")).unwrap();
    let error = build(run.path()).unwrap_err();
    assert!(matches!(error, ReportError::Write { .. }));
    assert!(error.to_string().contains("report.html"), "{error}");
    assert!(
        read_csv(&run.path().join("results.csv"))
            .unwrap()
            .is_empty()
    );
}

#[test]
fn several_models_are_compared_by_their_change_from_the_baseline() {
    let run = tempfile::tempdir().unwrap();
    let models = [("SiT-XS/8", 1000.0, 990.0), ("SiT-XS/4", 800.0, 720.0)];
    let mut rows = Vec::new();
    for (model, baseline, aligned) in models {
        for (encoder, recipe, distance) in [("none", "none", baseline), ("hog", "irepa", aligned)] {
            let mut row = row(encoder, recipe);
            row.cell = format!("{model}.{}", row.cell).replace('/', "");
            row.model = model.into();
            row.figures.set(Figure::Fd, distance);
            rows.push(row);
        }
    }
    write_csv(&run.path().join("results.csv"), &rows).unwrap();
    let report = build(run.path()).unwrap();
    let svg = fs::read_to_string(run.path().join("plots/change-by-model.svg")).unwrap();
    let labels = text(&svg);
    for expected in ["SiT-XS/8", "SiT-XS/4", "\u{2212}1.0 %", "\u{2212}10.0 %"] {
        assert!(labels.contains(expected), "{expected}: {labels}");
    }
    // The only encoder predicts nothing.
    let names = report.plots.iter().map(|plot| plot.display().to_string());
    assert!(!names.into_iter().any(|name| name.contains("overview")));
    assert!(text(&fs::read_to_string(&report.html).unwrap()).contains("Alignment by model"));
}
