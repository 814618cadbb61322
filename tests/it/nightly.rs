//! What takes minutes: `cargo nightly`.

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use embedserve::kernel::cpu::activation::activate;
use embedserve::kernel::{Activation, Isa, reference};

use crate::support::device::{TestDevice, bounds, soon};
use crate::support::evil::{ERROR, Fault, PANIC};

// N-05: every float there is, in every instruction set that this machine has.
#[test]
fn activations_match_their_definitions_for_every_float() {
    /// Bit patterns of one share of the work.
    const SHARE: u32 = 1 << 20;
    let next = AtomicU32::new(0);
    let threads = std::thread::available_parallelism().unwrap().get();
    let levels: Vec<Isa> = Isa::ALL.into_iter().filter(|isa| isa.is_supported()).collect();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let share = next.fetch_add(1, Ordering::Relaxed);
                    if share > u32::MAX / SHARE {
                        return;
                    }
                    let bits = (0..SHARE).map(|bits| f32::from_bits(share * SHARE + bits));
                    let floats: Vec<f32> = bits.filter(|x| x.is_finite()).collect();
                    check(&floats, &levels);
                }
            });
        }
    });
}

/// Within the bound of the grid test, and finite.
fn check(floats: &[f32], levels: &[Isa]) {
    for activation in [Activation::Gelu, Activation::GeluTanh, Activation::Silu, Activation::Tanh] {
        let expected: Vec<f64> = floats.iter().map(|x| reference::activate(activation, f64::from(*x))).collect();
        for &isa in levels {
            let mut found = floats.to_vec();
            activate(isa, activation, &mut found);
            for ((x, found), expected) in floats.iter().zip(&found).zip(&expected) {
                let error = (f64::from(*found) - expected).abs() / (1.0 + f64::from(x.abs()));
                assert!(error < 5e-7, "{isa} {activation:?} of {x:e}: {found:e} instead of {expected:e}");
            }
        }
    }
}

/// Rows per second of four clients that send nothing bad, in `time`.
async fn healthy(device: &TestDevice, time: Duration) -> f64 {
    let (start, done) = (Instant::now(), AtomicUsize::new(0));
    futures_util::future::join_all((0..4).map(|client| {
        let done = &done;
        async move {
            while start.elapsed() < time {
                let id = 100 + client;
                assert!(device.run(&[&[id, id]]).await[0].is_ok());
                done.fetch_add(1, Ordering::Relaxed);
            }
        }
    }))
    .await;
    done.into_inner() as f64 / start.elapsed().as_secs_f64()
}

// I-05: the same poison without end costs the others a fifth of their throughput at most.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endless_poison_leaves_the_others_their_throughput() {
    let device = TestDevice::start_within(bounds());
    // A cost per token, as real devices have: with one per pass, the figure would say how many of the four happen to
    // share their passes.
    device.evil.fault(Fault::Paced(Duration::from_micros(500)));
    let time = Duration::from_secs(5);
    let alone = healthy(&device, time).await;
    let poison = async {
        let (start, mut sent) = (Instant::now(), 0);
        while start.elapsed() < time {
            let tickets = device.submit(&[&[ERROR, 1], &[PANIC, 1]]).unwrap();
            assert!(tickets.join(soon()).await.unwrap().rows.iter().all(Result::is_err));
            sent += 1;
        }
        sent
    };
    let (beside, sent) = tokio::join!(healthy(&device, time), poison);
    eprintln!("{alone:.0} rows/s alone, {beside:.0} beside {sent} poisoned requests");
    assert!(sent >= 1000, "{sent} poisoned requests are no flood");
    assert!(beside >= 0.8 * alone, "{alone:.0} rows/s alone, {beside:.0} beside the poison");
}
