//! Loading beside models that serve.

use std::time::Duration;

use embedserve::kernel::Isa;
use embedserve::load::Loaded;

use crate::support::app::words;
use crate::support::served::{embed, shared_with, try_load_with};
use crate::support::tiny_model::TinyModel;

// Weights are packed by threads of their own: those of the pool may all be busy, and a pass must not wait for a load.
#[test]
fn loading_a_model_needs_no_compute_thread() {
    let shared = shared_with(1, Isa::detect());
    let (release, released) = std::sync::mpsc::channel::<()>();
    shared.threads.pool().spawn(move || assert!(released.recv().is_err()));
    let (folder, (loaded, done)) = (TinyModel::default().write(), std::sync::mpsc::channel());
    let loading = std::thread::spawn(move || {
        try_load_with(folder.path(), &shared).unwrap().served.queue.close();
        loaded.send(()).unwrap();
    });
    done.recv_timeout(Duration::from_secs(20)).expect("it waits for the busy thread");
    drop(release);
    loading.join().unwrap();
}

// A model that is loaded computes its known texts on the threads of those that serve. With four threads, two
// passes at once could each wait for members that the other one's kept from beginning.
#[tokio::test(flavor = "multi_thread")]
async fn loading_a_model_never_stops_one_that_computes() {
    let shared = shared_with(4, Isa::detect());
    // Large enough for a team of four.
    let model = |seed| TinyModel { seed, hidden: 128, ..TinyModel::default() }.write();
    let (folder, other) = (model(1), model(2));
    let loaded = try_load_with(folder.path(), &shared).unwrap();
    let text = words(50);
    let expected = embed(&loaded.served, &[&text]).await.unwrap().rows.remove(0).vector;
    let loading = tokio::task::spawn_blocking(move || {
        for _ in 0..30 {
            let Loaded { served, threads, .. } = try_load_with(other.path(), &shared).unwrap();
            served.queue.close();
            for thread in threads {
                thread.join().unwrap();
            }
        }
    });
    let computing = async {
        let mut n_passes = 0;
        while !loading.is_finished() {
            assert_eq!(embed(&loaded.served, &[&text]).await.unwrap().rows.remove(0).vector, expected);
            n_passes += 1;
        }
        n_passes
    };
    let n_passes = tokio::time::timeout(Duration::from_mins(1), computing).await.expect("a deadlock");
    assert!(n_passes > 30, "{n_passes} passes beside 30 loads");
    loading.await.unwrap();
    loaded.served.queue.close();
}

// What the test above can only meet by chance: on few cores, teams are small.
#[test]
fn loading_a_model_waits_for_its_turn_to_compute() {
    let shared = shared_with(1, Isa::detect());
    let turns = std::sync::Arc::clone(shared.threads.turns());
    let folder = TinyModel::default().write();
    let turn = turns.take();
    let loading = std::thread::spawn(move || try_load_with(folder.path(), &shared).unwrap());
    // Loading it takes some ten milliseconds.
    std::thread::sleep(Duration::from_millis(500));
    assert!(!loading.is_finished(), "it computed while it was another's turn");
    drop(turn);
    loading.join().unwrap().served.queue.close();
}
