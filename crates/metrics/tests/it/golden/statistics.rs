use metrics::statistics::{correlation_p_value, fit_line, pearson, ranks, spearman};

use super::case::Case;

fn check_set(set: &str) {
    let case = Case::open("spatial/stats_pairs");
    let x = case.vector(&format!("in.{set}.x")).to_vec();
    let y = case.vector(&format!("in.{set}.y")).to_vec();
    let key = |name: &str| format!("out.{set}.{name}");
    let exact = case.tolerance("pearson, spearman, ranks");
    let (pearson_tolerance, line_tolerance) = match set {
        "offset" => (
            case.tolerance("pearson of set offset"),
            case.tolerance("line of set offset"),
        ),
        _ => (exact, case.tolerance("line")),
    };

    let r = pearson(&x, &y).unwrap();
    let rho = spearman(&x, &y).unwrap();
    let line = fit_line(&x, &y).unwrap();
    case.check(&key("ranks_x"), &ranks(&x).unwrap(), exact);
    case.check(&key("ranks_y"), &ranks(&y).unwrap(), exact);
    case.check(&key("pearson"), &[r], pearson_tolerance);
    case.check(&key("spearman"), &[rho], exact);
    case.check(&key("line"), &[line.slope, line.intercept], line_tolerance);

    // An exact line has p = 0 up to rounding in r; the golden file has no p-value for it.
    if set != "exact" {
        let tolerance = case.tolerance("p-values");
        let p = |r| correlation_p_value(r, x.len()).unwrap();
        case.check(&key("pearson_p"), &[p(r)], tolerance);
        case.check(&key("spearman_p"), &[p(rho)], tolerance);
    }
}

#[test]
fn statistics_of_correlated_pairs_equal_reference() {
    check_set("linear");
}

#[test]
fn statistics_of_weakly_correlated_pairs_equal_reference() {
    check_set("weak");
}

#[test]
fn statistics_of_tied_values_equal_reference() {
    check_set("ties");
}

#[test]
fn statistics_with_an_outlier_equal_reference() {
    check_set("outlier");
}

#[test]
fn statistics_of_small_differences_on_a_large_offset_equal_reference() {
    check_set("offset");
}

#[test]
fn statistics_of_an_exact_line_equal_reference() {
    check_set("exact");
}
