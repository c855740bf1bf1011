//! Tables of finished, failed and stale cells.

use maud::{Markup, html};
use metrics::figures::Better;

use crate::distinct::distinct;
use crate::number::{decimals, plain};
use crate::results::{Column, ResultRow, Status};
use crate::run_folder::RunFolder;

/// A column of names or of seeds.
struct Text {
    name: &'static str,
    number: bool,
    get: fn(&ResultRow) -> String,
}

const TEXTS: [Text; 6] = [
    Text {
        name: "cell",
        number: false,
        get: |row| row.cell.clone(),
    },
    Text {
        name: "encoder",
        number: false,
        get: |row| row.encoder.clone(),
    },
    Text {
        name: "recipe",
        number: false,
        get: |row| row.recipe.clone(),
    },
    Text {
        name: "model",
        number: false,
        get: |row| row.model.clone(),
    },
    Text {
        name: "variant",
        number: false,
        get: |row| row.variant.clone(),
    },
    Text {
        name: "seed",
        number: true,
        get: |row| row.seed.to_string(),
    },
];

/// A column of numbers: the steps or a figure.
#[derive(Clone, Copy, PartialEq)]
struct Number(Column);

impl Number {
    /// All columns of numbers in the order of `results.csv`.
    fn all() -> impl Iterator<Item = Self> {
        let numbers = |column: &Column| matches!(column, Column::Steps | Column::Figure(_));
        Column::all().filter(numbers).map(Self)
    }

    fn name(self) -> &'static str {
        self.0.name()
    }

    fn title(self) -> &'static str {
        match self.0 {
            Column::Figure(figure) => figure.title(),
            other => other.name(),
        }
    }

    fn better(self) -> Better {
        match self.0 {
            Column::Figure(figure) => figure.better(),
            _ => Better::Neither,
        }
    }

    /// The value of `row`, if it is present and finite.
    fn of(self, row: &ResultRow) -> Option<f64> {
        match self.0 {
            Column::Figure(figure) => row.finite(figure),
            Column::Steps => row.steps.map(|steps| steps as f64),
            _ => None,
        }
    }

    /// Returns whether `left` is better than `right`.
    fn improves(self, left: f64, right: f64) -> bool {
        match self.0 {
            Column::Figure(figure) => figure.improves(left, right),
            _ => false,
        }
    }
}

/// The table of finished cells. Columns with the same value in all cells are listed above the table instead.
pub(super) fn results(run: &RunFolder) -> Markup {
    let rows: Vec<&ResultRow> = run
        .with_status(Status::Done)
        .map(|cell| &cell.row)
        .collect();
    if rows.is_empty() {
        return Markup::default();
    }
    let mut common = Vec::new();
    let texts: Vec<&Text> = TEXTS
        .iter()
        .filter(|text| {
            let values = distinct(rows.iter().map(|row| (text.get)(row)));
            match values.as_slice() {
                [value] if rows.len() > 1 => {
                    if !value.is_empty() {
                        common.push(format!("{} {value}", text.name));
                    }
                    false
                }
                _ => true,
            }
        })
        .collect();
    let numbers: Vec<Number> = Number::all()
        .filter(|column| {
            let values = distinct(rows.iter().map(|row| column.of(row)));
            match values.as_slice() {
                [Some(value)] if rows.len() > 1 && column.better() == Better::Neither => {
                    let digits = if value.fract() == 0.0 {
                        0
                    } else {
                        decimals([*value])
                    };
                    common.push(format!("{} {}", column.name(), plain(*value, digits)));
                    false
                }
                values => values.iter().any(Option::is_some),
            }
        })
        .collect();
    let digits: Vec<usize> = numbers
        .iter()
        .map(|column| {
            let values: Vec<f64> = rows.iter().filter_map(|row| column.of(row)).collect();
            if values.iter().all(|value| value.fract() == 0.0) {
                0
            } else {
                decimals(values)
            }
        })
        .collect();

    html! {
        @if !common.is_empty() { p.note { "All cells: " (common.join(", ")) "." } }
        div.table {
            table {
                thead {
                    tr {
                        @for text in &texts {
                            th class=[text.number.then_some("number")] { (text.name) }
                        }
                        @for column in &numbers { (heading(*column)) }
                    }
                }
                tbody {
                    @for row in &rows {
                        tr class=[row.is_baseline().then_some("baseline")] {
                            @for text in &texts { (text_cell(text, row)) }
                            @for (column, digits) in numbers.iter().zip(&digits) {
                                (number_cell(row, &rows, *column, *digits))
                            }
                        }
                    }
                }
            }
        }
        p.note {
            "\u{2193} lower is better, \u{2191} higher is better; the best value of each column is bold. Click a heading \
             to sort."
        }
    }
}

/// The heading of a column of numbers. A long name may be broken after each `_`.
fn heading(column: Number) -> Markup {
    let arrow = match column.better() {
        Better::Lower => "\u{a0}\u{2193}",
        Better::Higher => "\u{a0}\u{2191}",
        Better::Neither => "",
    };
    html! {
        th.number title=(column.title()) {
            @for part in column.name().split_inclusive('_') {
                (part)
                @if part.ends_with('_') { wbr; }
            }
            (arrow)
        }
    }
}

fn text_cell(text: &Text, row: &ResultRow) -> Markup {
    let value = (text.get)(row);
    html! {
        @if text.number {
            td.number data-value=(value) { (value) }
        } @else {
            td { (value) }
        }
    }
}

fn number_cell(row: &ResultRow, rows: &[&ResultRow], column: Number, digits: usize) -> Markup {
    let Some(value) = column.of(row) else {
        return html! { td.number {} };
    };
    let comparable = rows
        .iter()
        .filter(|other| other.model == row.model && other.variant == row.variant);
    let others: Vec<f64> = comparable.filter_map(|other| column.of(other)).collect();
    let beaten = others.iter().any(|other| column.improves(*other, value));
    let differs = others.iter().any(|other| *other != value);
    let best = column.better() != Better::Neither && differs && !beaten;
    html! { td.number.best[best] data-value=(value.to_string()) { (plain(value, digits)) } }
}

/// The table of failed cells with their reasons; empty if none failed.
pub(super) fn failed(run: &RunFolder) -> Markup {
    let rows = run.with_status(Status::Failed).map(|cell| &cell.row);
    with_reasons("Failed", rows)
}

/// The table of results that have other settings, with what differs; empty if there are none.
pub(super) fn stale(run: &RunFolder) -> Markup {
    let title = "Stale: results with other settings, which are excluded from all comparisons";
    with_reasons(title, run.stale.iter())
}

fn with_reasons<'a>(title: &str, rows: impl Iterator<Item = &'a ResultRow>) -> Markup {
    let mut rows = rows.peekable();
    if rows.peek().is_none() {
        return Markup::default();
    }
    html! {
        h3 { (title) }
        div.table {
            table {
                thead { tr { th { "cell" } th.number { "steps" } th { "reason" } } }
                tbody { @for row in rows { (reason_row(row)) } }
            }
        }
    }
}

fn reason_row(row: &ResultRow) -> Markup {
    let steps = row.steps.map(|steps| steps.to_string()).unwrap_or_default();
    let reason = match row.reason.trim() {
        "" => "no reason given",
        reason => reason,
    };
    html! {
        tr {
            td { (row.cell) }
            td.number data-value=(steps) { (steps) }
            td.reason { (reason) }
        }
    }
}
