//! Launches that are recorded and played: each time they do what they would do if they were asked for one by one.

use embedserve::arch::packed::PackedBatch;
use embedserve::kernel::cuda::launch::{Pass, Residual, Stream, Weight};
use embedserve::kernel::cuda::{Buffer, Device, Format};
use embedserve::kernel::{Activation, MatrixShape, Precision};

use super::overlap::{alone, batches, bits, encoder, submit};
use super::{gpu, numbers};
use crate::support::random::Random;

// A product, an activation and a sum, over memory whose contents change.
#[tokio::test]
async fn a_recording_does_with_other_inputs_what_its_launches_do() {
    let Some((device, _turn)) = gpu("cuda::graphs::a_recording_does_with_other_inputs_what_its_launches_do").await
    else {
        return;
    };
    let (tokens, n, k) = (21, 64, 40);
    let mut random = Random::new(29);
    let [weight, bias, first, second] = [n * k, n, tokens * k, tokens * k].map(|len| random.floats(len, 1.0));
    let numbers = numbers(&device, &[tokens], &[0], Format::F32);
    let upload = |values: &[f32]| Format::F32.upload(&device, values).unwrap();
    let weight = Weight { shape: MatrixShape { n, k }, values: upload(&weight), bias: Some(upload(&bias)) };
    let start = vec![0.5; tokens * n];
    let (mut x, mut sums, out, sum) = (upload(&first), upload(&start), upload(&start), upload(&start));
    let launches = |device: &Device, x: &Buffer, sums: &Buffer| {
        let pass = Pass { device, format: Format::F32, tokens, places: numbers.places() };
        pass.multiply(x, &weight, &out)?;
        pass.activate(&out, n, Activation::Gelu)?;
        let residual = Residual { buffer: sums, width: n, becomes: Stream::Sum };
        pass.add_norm(residual, Some(&out), None, &sum)
    };
    let seen = |sums: &Buffer| [&out, sums, &sum].map(|buffer| bits(&device.read(buffer, tokens * n).unwrap()));
    // As any recording needs it: the plan of the product.
    launches(&device, &x, &sums).unwrap();
    let before = seen(&sums);
    let recording = device.record(|device| launches(device, &x, &sums)).unwrap();
    assert_eq!(seen(&sums), before, "recording computes nothing");
    let [played, launched] = [true, false].map(|is_played| {
        // Sums go on from what is there.
        device.write(&start, &mut sums).unwrap();
        let inputs = [&first, &second, &second, &first];
        inputs.map(|input| {
            device.write(input, &mut x).unwrap();
            let asked = if is_played { recording.play() } else { launches(&device, &x, &sums) };
            asked.unwrap();
            seen(&sums)
        })
    });
    assert_eq!(device.played(), 4);
    assert_eq!(played, launched);
    assert!(played[0] != played[1] && played[1] != played[2], "the inputs make no difference");
    // Asked for and not waited for; whoever gives it back waits.
    recording.play().unwrap();
    drop(recording);
}

// What has no place in a recording is an error; the device, and the next recording, are none the worse for it.
#[tokio::test]
async fn what_cannot_be_recorded_harms_nobody() {
    let Some((device, _turn)) = gpu("cuda::graphs::what_cannot_be_recorded_harms_nobody").await else { return };
    let values = device.upload(&[-1.0_f32; 8]).unwrap();
    for _ in 0..2 {
        assert!(device.record(|device| device.read(&values, 8).map(drop)).is_err());
        assert_eq!(device.read(&values, 8).unwrap(), [-1.0; 8]);
    }
    let numbers = numbers(&device, &[1], &[0], Format::F32);
    let launch = |device: &Device| {
        let pass = Pass { device, format: Format::F32, tokens: 1, places: numbers.places() };
        pass.activate(&values, 8, Activation::Relu)
    };
    let recording = device.record(launch).unwrap();
    assert_eq!(device.read(&values, 8).unwrap(), [-1.0; 8]);
    recording.play().unwrap();
    assert_eq!(device.read(&values, 8).unwrap(), [0.0; 8]);
}

// Small batches of all kinds, behind each other and between larger ones for which memory has to grow: a shape that comes
// again is played, with the bits of its first time, and those are the ones that it has without any recording.
#[tokio::test]
async fn small_batches_have_the_same_bits_recorded_and_not() {
    let Some((device, _turn)) = gpu("cuda::graphs::small_batches_have_the_same_bits_recorded_and_not").await else {
        return;
    };
    // A real device may add up products of another shape in another order.
    let is_emulated = device.label().contains("Emulated");
    let plain = device.clone().without_recordings();
    for precision in [Precision::F32, Precision::F16, Precision::Bf16] {
        let mut reference = encoder(&plain, precision);
        let mut expected = |batch: &PackedBatch| alone(&mut *reference, batch);
        let mut recorded = encoder(&device, precision);
        let bound = recorded.company_bound();
        let small = batches(12, 4);
        for (round, large) in batches(2, 16).iter().enumerate() {
            for batch in &small {
                let before = device.played();
                let expected = expected(batch);
                assert_eq!(device.played(), before, "{precision}: nothing is played where that is off");
                let first = alone(&mut *recorded, batch);
                for (first, expected) in first.iter().zip(&expected) {
                    let [a, b] = [first, expected].map(|bits| f32::from_bits(*bits));
                    let same = if is_emulated { a.to_bits() == b.to_bits() } else { (a - b).abs() <= bound * 4.0 };
                    assert!(same, "{precision}, round {round}: {a} {b}");
                }
                for _ in 0..2 {
                    let before = device.played();
                    assert_eq!(alone(&mut *recorded, batch), first, "{precision}, round {round}");
                    assert_eq!(
                        device.played() - before,
                        1,
                        "{precision}, round {round}: the second time at the latest"
                    );
                }
                // In the other berth it is launched.
                let before = device.played();
                let pair = [(); 2].map(|()| submit(&mut *recorded, batch).unwrap());
                for submitted in pair {
                    assert_eq!(bits(&recorded.collect(submitted).unwrap()), first, "{precision}, two at a time");
                }
                assert_eq!(device.played() - before, 1);
            }
            alone(&mut *recorded, large);
        }
    }
}
