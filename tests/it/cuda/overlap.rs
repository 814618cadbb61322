//! Two batches under way on the device, and copies beside its kernels: each has the bits that it has alone.

use embedserve::arch::packed::PackedBatch;
use embedserve::arch::{self, Encoder, EncoderError, Submitted};
use embedserve::kernel::cuda::{Buffer, Device};
use embedserve::kernel::{Compute, Isa, Precision, Reduce, Target};
use embedserve::threads::Threads;

use super::gpu;
use crate::support::random::Random;
use crate::support::tiny_model::TinyModel;

const WAYS: [Reduce; 2] = [Reduce::Mean, Reduce::First];
/// Of the tiny models.
const POSITIONS: usize = 64;

/// The encoder of a tiny model, with heads of 32 values, which the matrix units have.
pub(super) fn encoder(device: &Device, precision: Precision) -> Box<dyn Encoder> {
    let folder = TinyModel { hidden: 128, ..TinyModel::default() }.write();
    let text = std::fs::read_to_string(folder.path().join("config.json")).unwrap();
    let (config, threads) = (serde_json::from_str(&text).unwrap(), Threads::new(1).unwrap());
    let compute = Compute { precision, ..Compute::exact(Isa::detect()) };
    let files = [folder.path().join("model.safetensors")];
    arch::load(&config, &files, &Target::Cuda(device.clone()), compute, threads.pool()).unwrap().encoder
}

/// Batches of all shapes, of up to so many rows.
pub(super) fn batches(n: usize, most_rows: usize) -> Vec<PackedBatch> {
    let mut random = Random::new(23);
    let row = |random: &mut Random| -> Vec<u32> {
        (0..=random.below(30)).map(|_| u32::try_from(5 + random.below(20)).unwrap()).collect()
    };
    let batch = |random: &mut Random| -> PackedBatch {
        let rows: Vec<Vec<u32>> = (0..=random.below(most_rows)).map(|_| row(random)).collect();
        PackedBatch::new(rows.iter().map(Vec::as_slice))
    };
    (0..n).map(|_| batch(&mut random)).collect()
}

pub(super) fn submit(encoder: &mut dyn Encoder, batch: &PackedBatch) -> Result<Submitted, EncoderError> {
    encoder.submit(batch, &WAYS, &vec![0; batch.n_rows()])
}

pub(super) fn bits(vectors: &[f32]) -> Vec<u32> {
    vectors.iter().map(|x| x.to_bits()).collect()
}

pub(super) fn alone(encoder: &mut dyn Encoder, batch: &PackedBatch) -> Vec<u32> {
    bits(&encoder.pooled(batch, &WAYS, &vec![0; batch.n_rows()]).unwrap())
}

// Also while their memory still grows: no batch reads what the next one brought, or writes what the one before leaves.
#[tokio::test]
async fn batches_behind_each_other_have_the_bits_of_each_alone() {
    let Some((device, _turn)) = gpu("cuda::overlap::batches_behind_each_other_have_the_bits_of_each_alone").await
    else {
        return;
    };
    for precision in [Precision::F32, Precision::F16, Precision::Bf16] {
        let batches = batches(20, 4);
        let mut reference = encoder(&device, precision);
        let expected: Vec<Vec<u32>> = batches.iter().map(|batch| alone(&mut *reference, batch)).collect();
        for reserved in [false, true] {
            let mut encoder = encoder(&device, precision);
            assert!(encoder.overlaps());
            if reserved {
                encoder.reserve(4 * 30, 4).unwrap();
            }
            let mut found = Vec::new();
            let mut present = submit(&mut *encoder, &batches[0]).unwrap();
            for next in &batches[1..] {
                let next = submit(&mut *encoder, next).unwrap();
                found.push(bits(&encoder.collect(std::mem::replace(&mut present, next)).unwrap()));
            }
            found.push(bits(&encoder.collect(present).unwrap()));
            for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
                assert_eq!(found, expected, "{precision}, batch {index}, reserved: {reserved}");
            }
        }
    }
}

// Whatever is wrong with the second one.
#[tokio::test]
async fn a_batch_that_cannot_be_begun_leaves_the_one_before_alone() {
    let Some((device, _turn)) = gpu("cuda::overlap::a_batch_that_cannot_be_begun_leaves_the_one_before_alone").await
    else {
        return;
    };
    let mut encoder = encoder(&device, Precision::F16);
    let batches = batches(3, 4);
    let expected: Vec<Vec<u32>> = batches.iter().map(|batch| alone(&mut *encoder, batch)).collect();
    // More activations than any device has room for.
    let too_many = device.memory().unwrap().1 / (128 * size_of::<f32>()) + 1;
    let row = [5_u32; POSITIONS];
    let too_large = PackedBatch::new(std::iter::repeat_n(row.as_slice(), too_many / POSITIONS + 1));
    let unknown = PackedBatch::new([[5, 1 << 20].as_slice()]);
    let emulated = device.label().contains("Emulated");
    for (what, faulty) in [("an id that is none", &unknown), ("too many tokens", &too_large)] {
        // A real device has hundreds of millions of tokens' room: the host would need gigabytes for this.
        if what == "too many tokens" && !emulated {
            continue;
        }
        let first = submit(&mut *encoder, &batches[0]).unwrap();
        let error = submit(&mut *encoder, faulty).unwrap_err();
        assert_eq!(matches!(error, EncoderError::OutOfMemory), what == "too many tokens", "{what}: {error}");
        let second = submit(&mut *encoder, &batches[1]).unwrap();
        let third = submit(&mut *encoder, &batches[2]).unwrap_err();
        assert!(third.to_string().contains("two batches"), "{third}");
        for (submitted, expected) in [(first, &expected[0]), (second, &expected[1])] {
            assert_eq!(&bits(&encoder.collect(submitted).unwrap()), expected, "{what}");
        }
        assert_eq!(alone(&mut *encoder, &batches[2]), expected[2], "{what}");
        assert!(encoder.collect(Submitted::UnderWay(0)).is_err(), "nothing is under way any more");
    }
}

// Copies are asked for and not waited for: none may see what was written for the next one.
#[tokio::test]
async fn what_is_sent_arrives_as_it_was() {
    let Some((device, _turn)) = gpu("cuda::overlap::what_is_sent_arrives_as_it_was").await else { return };
    let mut pinned = device.pinned();
    let value = |index: usize| vec![index as f32; 1 + 50 * index];
    let mut buffers: Vec<Buffer> = Vec::new();
    for index in 0..20 {
        let mut buffer = device.allocate(0).unwrap();
        device.grow(&mut buffer, 4 * 1000).unwrap();
        pinned.send(&value(index), &mut buffer).unwrap();
        buffers.push(buffer);
    }
    let [mut one, mut other] = [device.pinned(), device.pinned()];
    for (index, pair) in buffers.chunks(2).enumerate() {
        // Two at the same time.
        one.fetch(&pair[0], value(2 * index).len()).unwrap();
        other.fetch(&pair[1], value(2 * index + 1).len()).unwrap();
        assert_eq!(one.arrived(value(2 * index).len()).unwrap(), value(2 * index));
        assert_eq!(other.arrived(value(2 * index + 1).len()).unwrap(), value(2 * index + 1));
    }
    pinned.send(&[1.0_f32], &mut buffers[0]).unwrap();
    drop(pinned);
    one.fetch(&buffers[0], 1).unwrap();
    assert_eq!(one.arrived(1).unwrap(), [1.0]);
    // What is still on its way when its memory goes is waited for.
    one.fetch(&buffers[19], 900).unwrap();
    drop(one);
}
