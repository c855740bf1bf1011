//! States the findings of a run in sentences that are computed from the results.

use metrics::figures::{Figure, Kind};
use metrics::statistics::sign_test;

use crate::results::Status;

use super::comparison::{Group, groups, mean};
use super::correlation::{Advantage, MIN_ENCODERS, Relation, advantage, points, relation};
use super::curve::{denoising_loss, smooth, stays_below};
use super::distinct::distinct;
use super::figures::{encoder_metrics, frechet, frechet_features};
use super::number::{decimals, plain, short, signed};
use super::run_folder::{Cell, RunFolder};
use super::words::counted;

/// With fewer encoders than this, a bootstrap interval is imprecise.
const FEW_ENCODERS: usize = 10;

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Finding {
    pub topic: String,
    pub text: String,
}

/// The findings of a run, most important first. Never empty.
pub(super) fn findings(run: &RunFolder) -> Vec<Finding> {
    if run.count(Status::Done) == 0 {
        return vec![Finding {
            topic: "Nothing to compare".to_owned(),
            text: "No cell has finished yet.".to_owned(),
        }];
    }
    let frechet = frechet(run);
    let groups = groups(run);
    let mut findings = Vec::new();
    for group in &groups {
        let topic = |topic: &str| match groups.len() {
            1 => topic.to_owned(),
            _ => format!("{}: {topic}", group.label),
        };
        let mut add = |name: &str, text: Option<String>| {
            if let Some(text) = text {
                findings.push(Finding {
                    topic: topic(name),
                    text,
                });
            }
        };
        let features = frechet_features(run, frechet)
            .map(|features| format!(" ({features} features)"))
            .unwrap_or_default();
        add(
            &format!("Lowest {}{features}", frechet.title()),
            best(group, frechet),
        );
        add("Lowest denoising loss", best(group, Figure::DenoisingLoss));
        for recipe in group.recipes() {
            let gain = gain_over_baseline(group, recipe, frechet);
            let by_encoder = encoders_above_baseline(group, recipe, frechet);
            add(recipe, gain.map(|gain| gain + &by_encoder));
        }
        for (index, left) in group.recipes().into_iter().enumerate() {
            for right in group.recipes().into_iter().skip(index + 1) {
                let compared = compare_recipes(group, left, right, frechet);
                let by_encoder = encoders_above_recipe(group, left, right, frechet);
                add(
                    &format!("{left} against {right}"),
                    compared.map(|compared| compared + &by_encoder),
                );
            }
        }
        add(
            &format!("What predicts the {}", frechet.title()),
            strongest_relation(group, frechet),
        );
        for recipe in group.recipes() {
            add(
                &format!("Spatial metrics against linear probing, {recipe}"),
                spatial_against_probe(group, recipe, frechet),
            );
        }
    }
    findings.push(seeds(&groups));
    findings
}

/// The cell with the best value of `figure`, compared with its baseline.
fn best(group: &Group<'_>, figure: Figure) -> Option<String> {
    let (cell, value) = group
        .done()
        .filter_map(|cell| Some((cell, cell.row.finite(figure)?)))
        .reduce(|best, next| {
            if figure.improves(next.1, best.1) {
                next
            } else {
                best
            }
        })?;
    let mut text = format!("{} with {}", cell.row.cell, short(value));
    if cell.row.is_baseline() {
        text.push_str(", the baseline without alignment; no aligned cell is lower.");
        return Some(text);
    }
    let baseline = group
        .pairs()
        .into_iter()
        .find(|(paired, _)| std::ptr::eq(*paired, cell))
        .and_then(|(_, baseline)| baseline.row.finite(figure));
    match baseline {
        Some(baseline) => text.push_str(&format!(
            "; the baseline of the same model and seed has {} ({}).",
            short(baseline),
            change(value, baseline)
        )),
        None => text.push_str("; there is no finished baseline of the same model and seed."),
    }
    Some(text)
}

/// The absolute and relative change, such as `−1.23, −4.5 %`.
fn change(value: f64, from: f64) -> String {
    let difference = value - from;
    let digits = decimals([value, from]);
    let absolute = signed(difference, digits);
    if from > 0.0 {
        format!("{absolute}, {} %", signed(difference / from * 100.0, 1))
    } else {
        absolute
    }
}

/// The results of `recipe` compared with those of the baselines of the same seeds.
fn gain_over_baseline(group: &Group<'_>, recipe: &str, frechet: Figure) -> Option<String> {
    let pairs: Vec<(&Cell, &Cell)> = group
        .pairs()
        .into_iter()
        .filter(|(cell, _)| cell.row.recipe == recipe)
        .collect();
    if pairs.is_empty() {
        let finished = group.done().filter(|cell| cell.row.recipe == recipe);
        return (finished.count() > 0).then(|| {
            "No finished baseline of the same model and seed, so the gain is unknown.".to_owned()
        });
    }
    let tallies: Vec<String> = [frechet, Figure::DenoisingLoss]
        .into_iter()
        .filter_map(|figure| {
            let values = pairs.iter().filter_map(|(cell, baseline)| {
                Some((cell.row.finite(figure)?, baseline.row.finite(figure)?))
            });
            tally(&values.collect::<Vec<_>>(), figure)
        })
        .collect();
    if tallies.is_empty() {
        return None;
    }
    let fastest = fastest(&pairs, group.last_step()).unwrap_or_default();
    Some(format!(
        "Compared with the baseline without alignment of the same model and seed: {}.{fastest}",
        tallies.join(", ")
    ))
}

/// The number of pairs whose left value is lower, and the mean change.
fn tally(values: &[(f64, f64)], figure: Figure) -> Option<String> {
    let differences: Vec<f64> = values.iter().map(|(left, right)| left - right).collect();
    let lowest = differences.iter().copied().reduce(f64::min)?;
    let highest = differences.iter().copied().reduce(f64::max)?;
    let average = mean(differences.iter().copied())?;
    let lower = differences.iter().filter(|d| **d < 0.0).count();
    let reference = mean(values.iter().map(|(_, right)| *right))?.value;
    let digits = decimals([reference]);
    let relative = if reference > 0.0 {
        format!(", {} %", signed(average.value / reference * 100.0, 1))
    } else {
        String::new()
    };
    let spread = if differences.len() > 1 {
        format!(
            "; from {} to {}",
            signed(lowest, digits),
            signed(highest, digits)
        )
    } else {
        String::new()
    };
    let average = signed(average.value, digits);
    Some(format!(
        "{} lower in {lower} of {} (mean change {average}{relative}{spread})",
        figure.title(),
        counted(differences.len(), "cell"),
    ))
}

/// The cell that reaches the final loss of its baseline at the earliest step, and that step.
fn fastest(pairs: &[(&Cell, &Cell)], training: f64) -> Option<String> {
    let (cell, step, last) = pairs
        .iter()
        .filter_map(|(cell, baseline)| {
            let (last, level) = *smooth(&denoising_loss(baseline), training).last()?;
            let step = stays_below(&smooth(&denoising_loss(cell), training), level)?;
            (step < last).then_some((cell, step, last))
        })
        .min_by(|left, right| left.1.total_cmp(&right.1))?;
    Some(format!(
        " With {}, the smoothed denoising loss stays at or below the final loss of the baseline from step {} of {}.",
        cell.row.encoder,
        plain(step, 0),
        plain(last, 0)
    ))
}

/// The results of recipe `left` compared with those of `right` for the same encoders and seeds.
fn compare_recipes(group: &Group<'_>, left: &str, right: &str, frechet: Figure) -> Option<String> {
    let tallies: Vec<String> = [frechet, Figure::DenoisingLoss]
        .into_iter()
        .filter_map(|figure| {
            let pairs = group
                .done()
                .filter(|cell| cell.row.recipe == left)
                .filter_map(|cell| {
                    let other = group.done().find(|other| {
                        other.row.recipe == right
                            && other.row.encoder == cell.row.encoder
                            && other.row.seed == cell.row.seed
                    })?;
                    Some((cell.row.finite(figure)?, other.row.finite(figure)?))
                });
            tally(&pairs.collect::<Vec<_>>(), figure)
        })
        .collect();
    (!tallies.is_empty())
        .then(|| format!("With the same encoder and seed: {}.", tallies.join(", ")))
}

/// With how many encoders `recipe` is better than the baseline, averaged over seeds.
fn encoders_above_baseline(group: &Group<'_>, recipe: &str, frechet: Figure) -> String {
    let baseline = group.baseline_mean(frechet);
    let means = group
        .encoders()
        .into_iter()
        .filter_map(|encoder| Some((group.mean(frechet, encoder, recipe)?.value, baseline?.value)));
    sign_test_of(&means.collect::<Vec<_>>(), frechet)
}

/// With how many encoders recipe `left` is better than `right`, averaged over seeds.
fn encoders_above_recipe(group: &Group<'_>, left: &str, right: &str, frechet: Figure) -> String {
    let means = group.encoders().into_iter().filter_map(|encoder| {
        let mean = |recipe| group.mean(frechet, encoder, recipe);
        Some((mean(left)?.value, mean(right)?.value))
    });
    sign_test_of(&means.collect::<Vec<_>>(), frechet)
}

/// A sentence on pairs of means, one for each encoder; empty if there are too few.
fn sign_test_of(means: &[(f64, f64)], frechet: Figure) -> String {
    if means.len() < MIN_ENCODERS {
        return String::new();
    }
    let lower = means.iter().filter(|(left, right)| left < right).count();
    let higher = means.iter().filter(|(left, right)| left > right).count();
    let p = sign_test(lower, higher);
    let p = match p < 0.0001 {
        true => "p < 0.0001".to_owned(),
        false => format!("p = {}", plain(p, 4)),
    };
    format!(
        " By encoder, averaged over seeds, the {} is lower with {lower} of {} (sign test, {p}).",
        frechet.title(),
        means.len()
    )
}

/// By how much each spatial metric predicts the Frechet distance better than the linear probe.
fn spatial_against_probe(group: &Group<'_>, recipe: &str, frechet: Figure) -> Option<String> {
    let compared: Vec<(Figure, Advantage)> = Figure::of_kind(Kind::Spatial)
        .filter_map(|metric| {
            let metrics = [metric, Figure::LinearProbe];
            Some((metric, advantage(group, recipe, metrics, frechet)?))
        })
        .collect();
    let (_, first) = compared.first()?;
    let parts: Vec<String> = compared
        .iter()
        .map(|(metric, advantage)| {
            let (low, high) = advantage.interval;
            format!(
                "{} {} [{}, {}]",
                metric.name(),
                signed(advantage.difference, 2),
                plain(low, 2),
                plain(high, 2)
            )
        })
        .collect();
    let decided = |above: fn(&Advantage) -> bool| {
        let names = compared.iter().filter(|(_, advantage)| above(advantage));
        names.map(|(metric, _)| metric.name()).collect::<Vec<_>>()
    };
    let better = decided(|advantage| advantage.interval.0 > 0.0);
    let worse = decided(|advantage| advantage.interval.1 < 0.0);
    let verdict = match (better.as_slice(), worse.as_slice()) {
        ([], []) => "All intervals include zero: the data do not decide.".to_owned(),
        (better, []) => format!("Better than the linear probe: {}.", better.join(", ")),
        ([], worse) => format!("Worse than the linear probe: {}.", worse.join(", ")),
        (better, worse) => format!(
            "Better than the linear probe: {}; worse: {}.",
            better.join(", "),
            worse.join(", ")
        ),
    };
    Some(format!(
        "|r| with the {}, minus |r| of the linear probe, over {} encoders, with 95 % bootstrap intervals: {}. {verdict}",
        frechet.title(),
        first.n,
        parts.join(", ")
    ))
}

/// The encoder metric with the strongest correlation to the Frechet distance.
fn strongest_relation(group: &Group<'_>, frechet: Figure) -> Option<String> {
    let mut most = 0;
    let mut fitted = Vec::new();
    for metric in encoder_metrics() {
        for recipe in group.recipes() {
            match relation(&points(group, recipe, metric, frechet)) {
                Relation::Fitted { r, interval, n, .. } => {
                    fitted.push((metric.name(), recipe, r, interval, n));
                }
                Relation::TooFew { n } | Relation::Undefined { n } => most = most.max(n),
            }
        }
    }
    let candidates = fitted.len();
    let strongest = fitted
        .into_iter()
        .max_by(|left, right| left.2.abs().total_cmp(&right.2.abs()));
    let Some((metric, recipe, r, interval, n)) = strongest else {
        return (most > 0).then(|| {
            format!(
                "No correlation is claimed from {}.",
                counted(most, "encoder")
            )
        });
    };
    let mut text = format!(
        "{metric} under {recipe} has the strongest correlation: r = {} over {n} encoders",
        plain(r, 2)
    );
    let (low, high) = interval;
    let zero = if low <= 0.0 && high >= 0.0 {
        "includes zero, so the sign is uncertain"
    } else {
        "does not include zero"
    };
    text += &format!(
        ", with a 95 % bootstrap interval from {} to {} that {zero}.",
        plain(low, 2),
        plain(high, 2)
    );
    if n < FEW_ENCODERS {
        text += &format!(" With only {n} encoders, the interval itself is imprecise.");
    }
    if candidates > 1 {
        text += &format!(
            " It was selected as the strongest of {candidates} correlations, which overstates it; the \
             interval does not correct for the selection."
        );
    }
    Some(text)
}

fn seeds(groups: &[Group<'_>]) -> Finding {
    let seeds = groups
        .iter()
        .map(|group| distinct(group.done().map(|cell| cell.row.seed)).len())
        .max()
        .unwrap_or(0);
    let text = if seeds > 1 {
        format!(
            "Up to {seeds} seeds per configuration; a dot that represents several seeds shows their mean."
        )
    } else {
        "One seed per configuration: differences as small as those between seeds cannot be \
         distinguished from chance."
            .to_owned()
    };
    Finding {
        topic: "Seeds".to_owned(),
        text,
    }
}
