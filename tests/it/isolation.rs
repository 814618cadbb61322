//! One row's failure is its own: errors, panics, NaN, several poisoned rows, rows that fail only in company.

use embedserve::batch::RowFailure;

use crate::support::device::{TestDevice, limits, until};
use crate::support::evil::{BLOCK, COMPANION, ERROR, NAN, PANIC, SHY, expected};

/// Rows of healthy ids, with `poison` in the middle of the one at `place`.
fn rows_with(n: usize, place: usize, poison: u32) -> Vec<Vec<u32>> {
    let row = |index: usize| {
        let id = u32::try_from(100 + index).unwrap();
        if index == place { vec![id, poison, id] } else { vec![id, id + 1] }
    };
    (0..n).map(row).collect()
}

async fn check_one_poisoned_row(poison: u32, failure: RowFailure, max_passes: usize) {
    for (n, place) in [(1, 0), (2, 1), (16, 0), (16, 9), (33, 32)] {
        let device = TestDevice::start(limits());
        let rows = rows_with(n, place, poison);
        let rows: Vec<&[u32]> = rows.iter().map(Vec::as_slice).collect();
        let answers = device.run(&rows).await;
        for (index, (answer, row)) in answers.iter().zip(&rows).enumerate() {
            let wanted = if index == place { Err(failure) } else { Ok(expected(row)) };
            assert_eq!(answer, &wanted, "row {index} of {n}");
        }
        let passes = device.evil.batches().len();
        let levels = usize::try_from(n.next_power_of_two().ilog2()).unwrap();
        assert!(passes <= 1 + max_passes * levels, "{passes} forward passes for {n} rows");
        // The thread lives on.
        assert_eq!(device.run(&[&[5, 6]]).await, [Ok(expected(&[5, 6]))]);
    }
}

// I-01
#[tokio::test]
async fn an_error_is_bisected_to_its_row() {
    check_one_poisoned_row(ERROR, RowFailure::Failed, 2).await;
}

// I-02
#[tokio::test]
async fn a_panicking_row_fails_alone() {
    check_one_poisoned_row(PANIC, RowFailure::Panicked, 2).await;
}

// I-03
#[tokio::test]
async fn a_nan_row_fails_alone_without_a_second_pass() {
    check_one_poisoned_row(NAN, RowFailure::NonFinite, 0).await;
}

// I-04
#[tokio::test]
async fn several_poisoned_rows_are_each_isolated() {
    let device = TestDevice::start(limits());
    let answers = device.run(&[&[100], &[ERROR], &[101], &[PANIC], &[NAN], &[102]]).await;
    assert_eq!(
        answers,
        [
            Ok(expected(&[100])),
            Err(RowFailure::Failed),
            Ok(expected(&[101])),
            Err(RowFailure::Panicked),
            Err(RowFailure::NonFinite),
            Ok(expected(&[102])),
        ]
    );
    let all = device.run(&[&[ERROR], &[PANIC], &[ERROR]]).await;
    assert!(all.iter().all(Result::is_err));
}

// I-04
#[tokio::test]
async fn a_row_that_fails_only_in_company_succeeds_alone() {
    let device = TestDevice::start(limits());
    let answers = device.run(&[&[100], &[SHY], &[COMPANION], &[101]]).await;
    assert_eq!(answers, [&[100], &[SHY], &[COMPANION], &[101]].map(|row| Ok(expected(row))));
}

// I-01 across requests: the neighbour belongs to somebody else.
#[tokio::test]
async fn a_poisoned_request_does_not_fail_another_request_of_its_batch() {
    let device = TestDevice::start(limits());
    let blocker = device.submit(&[&[BLOCK]]).unwrap();
    until("the first batch is computing", || device.evil.batches().len() == 1).await;
    let poisoned = device.submit(&[&[PANIC], &[1]]).unwrap();
    let healthy = device.submit(&[&[100, 101]]).unwrap();
    device.evil.release();
    let soon = crate::support::device::soon();
    assert!(blocker.join(soon).await.unwrap().rows[0].is_ok());
    let healthy = healthy.join(soon).await.unwrap().rows.remove(0).unwrap();
    assert_eq!(healthy.vector.as_slice(), expected(&[100, 101]));
    let poisoned = poisoned.join(soon).await.unwrap().rows;
    assert_eq!(poisoned[0].as_ref().unwrap_err(), &RowFailure::Panicked);
    assert!(poisoned[1].is_ok());
    assert_eq!(device.evil.batches()[1].len(), 3, "both requests rode in one batch");
}
