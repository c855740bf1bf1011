//! Places labels so that they cover neither each other nor the data.

use super::canvas::Rect;

/// Moves the pixel rows `desired` as little as possible so that neighbours are at least `gap` apart and within
/// `low..=high`. If there is not enough space, the gap is reduced. Returns the rows in the order of `desired`.
pub(super) fn spread(desired: &[f64], gap: f64, low: f64, high: f64) -> Vec<f64> {
    let mut order: Vec<usize> = (0..desired.len()).collect();
    order.sort_by(|left, right| desired[*left].total_cmp(&desired[*right]));
    let needed = gap * desired.len().saturating_sub(1) as f64;
    let gap = if needed > high - low {
        (high - low) / desired.len().saturating_sub(1).max(1) as f64
    } else {
        gap
    };
    // Runs of touching labels: (rank of the first label, number of labels, sum of the rows that each label prefers for
    // the first one).
    let mut runs: Vec<(usize, usize, f64)> = Vec::new();
    let start = |run: &(usize, usize, f64)| {
        let extent = gap * (run.1 - 1) as f64;
        (run.2 / run.1 as f64).clamp(low, (high - extent).max(low))
    };
    for (rank, index) in order.iter().enumerate() {
        let mut run = (rank, 1, desired[*index]);
        while let Some(before) = runs.last() {
            if start(before) + gap * before.1 as f64 <= start(&run) {
                break;
            }
            let offset = gap * before.1 as f64 * run.1 as f64;
            run = (before.0, before.1 + run.1, before.2 + run.2 - offset);
            runs.pop();
        }
        runs.push(run);
    }
    let mut rows = vec![0.0; desired.len()];
    for run in &runs {
        for index in 0..run.1 {
            rows[order[run.0 + index]] = start(run) + gap * index as f64;
        }
    }
    rows
}

/// A straight line from one pixel to another.
pub(super) type Segment = ((f64, f64), (f64, f64));

/// A label to be placed: its size, and the points next to any of which it may be placed.
#[derive(Debug, Clone)]
pub(super) struct LabelRequest {
    pub width: f64,
    pub height: f64,
    pub anchors: Vec<(f64, f64)>,
}

/// The position of a placed label.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Placement {
    pub rect: Rect,
    /// The point that the label is next to.
    pub anchor: (f64, f64),
    /// Whether the label is so far from its point that a line must connect them.
    pub leader: bool,
}

/// Places labels one after another inside `bounds`. Each is placed where it covers the least of `obstacles`, `lines` and
/// the labels placed before it; `None` if it does not fit.
pub(super) fn place(
    requests: &[LabelRequest],
    obstacles: &[Rect],
    lines: &[Segment],
    bounds: Rect,
) -> Vec<Option<Placement>> {
    let mut taken = obstacles.to_vec();
    let crowding = |request: &LabelRequest| {
        let near = requests.iter().flat_map(|other| &other.anchors);
        let anchors = &request.anchors;
        near.filter(|point| {
            anchors
                .iter()
                .any(|anchor| (anchor.0 - point.0).hypot(anchor.1 - point.1) < 40.0)
        })
        .count()
    };
    // Labels in crowded areas are placed first, while there is space.
    let mut order: Vec<usize> = (0..requests.len()).collect();
    order.sort_by_key(|index| std::cmp::Reverse(crowding(&requests[*index])));
    let mut placements = vec![None; requests.len()];
    for index in order {
        let request = &requests[index];
        let best = candidates(request)
            .filter(|candidate| contains(bounds, candidate.rect))
            .map(|candidate| (cost(&candidate, &taken, lines), candidate))
            .min_by(|left, right| left.0.total_cmp(&right.0));
        if let Some((_, placement)) = best {
            taken.push(placement.rect);
            placements[index] = Some(placement);
        }
    }
    placements
}

/// Candidate placements around each anchor, near ones first.
fn candidates(request: &LabelRequest) -> impl Iterator<Item = Placement> + '_ {
    const RINGS: [f64; 6] = [8.0, 12.0, 18.0, 26.0, 36.0, 48.0];
    const DIRECTIONS: usize = 12;
    RINGS.into_iter().flat_map(move |distance| {
        request.anchors.iter().flat_map(move |&anchor| {
            (0..DIRECTIONS).map(move |direction| {
                let angle = direction as f64 / DIRECTIONS as f64 * std::f64::consts::TAU;
                let (dx, dy) = (angle.cos(), -angle.sin());
                // `distance` is measured to the nearest point of the label, not to its centre.
                let centre = (
                    anchor.0 + dx * (distance + request.width / 2.0),
                    anchor.1 + dy * (distance + request.height / 2.0),
                );
                Placement {
                    rect: Rect {
                        x: centre.0 - request.width / 2.0,
                        y: centre.1 - request.height / 2.0,
                        width: request.width,
                        height: request.height,
                    },
                    anchor,
                    leader: distance > 12.0,
                }
            })
        })
    })
}

fn cost(placement: &Placement, taken: &[Rect], lines: &[Segment]) -> f64 {
    let rect = placement.rect;
    let covered: f64 = taken.iter().map(|other| overlap(rect, *other)).sum();
    let crossed = lines.iter().filter(|line| crosses(rect, **line)).count();
    let centre = (rect.x + rect.width / 2.0, rect.y + rect.height / 2.0);
    let away = (centre.0 - placement.anchor.0).hypot(centre.1 - placement.anchor.1);
    covered * 10.0 + crossed as f64 * 30.0 + away
}

fn contains(outer: Rect, inner: Rect) -> bool {
    inner.x >= outer.x
        && inner.y >= outer.y
        && inner.right() <= outer.right()
        && inner.bottom() <= outer.bottom()
}

fn overlap(left: Rect, right: Rect) -> f64 {
    let width = left.right().min(right.right()) - left.x.max(right.x);
    let height = left.bottom().min(right.bottom()) - left.y.max(right.y);
    width.max(0.0) * height.max(0.0)
}

fn crosses(rect: Rect, (from, to): Segment) -> bool {
    const SAMPLES: usize = 200;
    (0..=SAMPLES).any(|sample| {
        let fraction = sample as f64 / SAMPLES as f64;
        let x = from.0 + (to.0 - from.0) * fraction;
        let y = from.1 + (to.1 - from.1) * fraction;
        (rect.x..=rect.right()).contains(&x) && (rect.y..=rect.bottom()).contains(&y)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn apart(places: &[f64], gap: f64) -> bool {
        let mut sorted = places.to_vec();
        sorted.sort_by(f64::total_cmp);
        sorted
            .windows(2)
            .all(|pair| pair[1] - pair[0] >= gap - 1e-9)
    }

    #[test]
    fn labels_with_enough_space_are_not_moved() {
        let desired = [10.0, 50.0, 90.0];
        assert_eq!(spread(&desired, 12.0, 0.0, 100.0), desired);
    }

    #[test]
    fn crowded_labels_move_apart_around_their_centre_and_keep_their_order() {
        let places = spread(&[51.0, 50.0, 49.0, 10.0], 12.0, 0.0, 100.0);
        assert!(apart(&places, 12.0), "{places:?}");
        assert!(places[2] < places[1] && places[1] < places[0]);
        assert!((places[1] - 50.0).abs() < 1e-9);
        assert_eq!(places[3], 10.0);
    }

    #[test]
    fn labels_stay_inside_even_when_there_are_too_many() {
        let desired: Vec<f64> = (0..30).map(|index| 99.0 + f64::from(index)).collect();
        for place in spread(&desired, 12.0, 0.0, 100.0) {
            assert!((-1e-9..=100.0 + 1e-9).contains(&place));
        }
        let few = spread(&desired[..5], 12.0, 0.0, 100.0);
        assert!(apart(&few, 12.0), "{few:?}");
        assert!(few.iter().all(|place| *place <= 100.0));
        assert!(spread(&[], 12.0, 0.0, 100.0).is_empty());
    }

    #[test]
    fn placed_labels_do_not_overlap() {
        let bounds = Rect {
            x: 0.0,
            y: 0.0,
            width: 400.0,
            height: 300.0,
        };
        let requests: Vec<LabelRequest> = (0..12)
            .map(|index| LabelRequest {
                width: 60.0,
                height: 12.0,
                anchors: vec![(200.0 + f64::from(index) * 3.0, 150.0)],
            })
            .collect();
        let placed: Vec<Rect> = place(&requests, &[], &[], bounds)
            .into_iter()
            .map(|placement| placement.unwrap().rect)
            .collect();
        for (index, left) in placed.iter().enumerate() {
            assert!(contains(bounds, *left));
            for right in &placed[index + 1..] {
                assert_eq!(overlap(*left, *right), 0.0);
            }
        }
    }
}
