//! Draws a pair of axes on a canvas, and curves clipped to them.

use plotters::prelude::*;

use super::axis::Axis;
use super::canvas::{AXIS, Canvas, DrawError, GRID, Look, MUTED, Rect, SMALL};
use super::canvas::{pixel, point, stroke, text_style};

/// Space for tick labels to the left of a plotting area and below it, in pixels.
const LEFT: f64 = 60.0;
const BELOW: f64 = 24.0;

/// A plotting area with its axes.
pub(super) struct Panel<'c, 'a> {
    canvas: &'c Canvas<'a>,
    pub plot: Rect,
    x: Axis,
    y: Axis,
}

impl<'c, 'a> Panel<'c, 'a> {
    /// Draws axes, grid lines and tick labels. The labels of the y axis, to the left of `plot`, are drawn only if
    /// `y_labels` is set.
    pub fn draw(
        canvas: &'c Canvas<'a>,
        plot: Rect,
        (x, y): (&Axis, &Axis),
        y_labels: bool,
    ) -> Result<Self, DrawError> {
        let area = canvas.root.clone().shrink(
            point((plot.x - LEFT, plot.y)),
            point((plot.width + LEFT, plot.height + BELOW)),
        );
        let mut chart = ChartBuilder::on(&area)
            .set_label_area_size(LabelAreaPosition::Left, pixel(LEFT))
            .set_label_area_size(LabelAreaPosition::Bottom, pixel(BELOW))
            .build_cartesian_2d(x.clone(), y.clone())?;
        let y_text = |tick: &f64| {
            if y_labels {
                y.label(*tick)
            } else {
                String::new()
            }
        };
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(stroke(GRID, 1.0, 1.0))
            .axis_style(stroke(AXIS, 1.0, 1.0))
            .set_all_tick_mark_size(pixel(3.0))
            .label_style(text_style(Look::new(SMALL, MUTED)))
            .x_label_formatter(&|tick| x.label(*tick))
            .y_label_formatter(&y_text)
            .draw()?;
        Ok(Panel {
            canvas,
            plot,
            x: x.clone(),
            y: y.clone(),
        })
    }

    /// The pixel of a point.
    pub fn pixel_at(&self, (x, y): (f64, f64)) -> (f64, f64) {
        (
            self.plot.x + self.x.position(x) * self.plot.width,
            self.plot.bottom() - self.y.position(y) * self.plot.height,
        )
    }

    /// The pixel row of a value, clamped to the panel.
    pub fn row(&self, y: f64) -> f64 {
        let (_, row) = self.pixel_at((self.x.low(), y));
        row.clamp(self.plot.y, self.plot.bottom())
    }

    /// Draws a curve, clipped at the edges of the panel.
    pub fn curve(
        &self,
        curve: &[(f64, f64)],
        colour: RGBColor,
        width: f64,
        opacity: f64,
    ) -> Result<(), DrawError> {
        let pixels: Vec<(f64, f64)> = curve.iter().map(|value| self.pixel_at(*value)).collect();
        for piece in clip(&pixels, self.plot) {
            self.canvas.line(&piece, colour, width, opacity)?;
        }
        Ok(())
    }
}

/// The pieces of the polyline `points` inside `rect`.
fn clip(points: &[(f64, f64)], rect: Rect) -> Vec<Vec<(f64, f64)>> {
    let mut pieces: Vec<Vec<(f64, f64)>> = Vec::new();
    for (&from, &to) in points.iter().zip(points.iter().skip(1)) {
        let Some((start, end)) = clip_segment(from, to, rect) else {
            continue;
        };
        match pieces.last_mut() {
            Some(piece) if piece.last() == Some(&start) => piece.push(end),
            _ => pieces.push(vec![start, end]),
        }
    }
    pieces
}

/// The part of a segment inside `rect`, by the Liang-Barsky algorithm.
fn clip_segment(from: (f64, f64), to: (f64, f64), rect: Rect) -> Option<((f64, f64), (f64, f64))> {
    let (dx, dy) = (to.0 - from.0, to.1 - from.1);
    let (mut enter, mut leave) = (0.0_f64, 1.0_f64);
    for (direction, distance) in [
        (-dx, from.0 - rect.x),
        (dx, rect.right() - from.0),
        (-dy, from.1 - rect.y),
        (dy, rect.bottom() - from.1),
    ] {
        if direction == 0.0 {
            if distance < 0.0 {
                return None;
            }
        } else if direction < 0.0 {
            enter = enter.max(distance / direction);
        } else {
            leave = leave.min(distance / direction);
        }
    }
    if enter > leave || !enter.is_finite() || !leave.is_finite() {
        return None;
    }
    let position = |fraction: f64| match fraction {
        0.0 => from,
        1.0 => to,
        _ => (from.0 + fraction * dx, from.1 + fraction * dy),
    };
    Some((position(enter), position(leave)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECT: Rect = Rect {
        x: 0.0,
        y: 0.0,
        width: 10.0,
        height: 10.0,
    };

    #[test]
    fn curves_inside_stay_whole() {
        let points = [(1.0, 1.0), (2.0, 3.0), (9.0, 9.0)];
        assert_eq!(clip(&points, RECT), [points.to_vec()]);
    }

    #[test]
    fn curves_are_cut_at_the_edge() {
        let points = [(5.0, -10.0), (5.0, 5.0), (5.0, 20.0)];
        assert_eq!(clip(&points, RECT), [[(5.0, 0.0), (5.0, 5.0), (5.0, 10.0)]]);
    }

    #[test]
    fn a_curve_that_leaves_and_returns_has_two_pieces() {
        let points = [(1.0, 5.0), (2.0, 15.0), (3.0, 15.0), (4.0, 5.0)];
        assert_eq!(clip(&points, RECT).len(), 2);
        assert!(clip(&[(1.0, 11.0), (9.0, 12.0)], RECT).is_empty());
    }
}
