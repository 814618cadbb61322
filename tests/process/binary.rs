//! What the linker made: an executable that cannot be placed, patched or misled easily.

const TYPE_SHARED: u16 = 3;
const DYNAMIC: u32 = 2;
const GNU_STACK: u32 = 0x6474_e551;
const GNU_RELRO: u32 = 0x6474_e552;
const EXECUTABLE: u32 = 1;
const BIND_NOW: u64 = 24;
const FLAGS: (u64, u64) = (30, 8);
const FLAGS_1: (u64, u64) = (0x6fff_fffb, 1);
const RPATH: u64 = 15;
const RUNPATH: u64 = 29;

/// A 64-bit little-endian ELF file.
struct Elf(Vec<u8>);

struct Segment {
    kind: u32,
    flags: u32,
    offset: usize,
    size: usize,
}

impl Elf {
    fn number<const N: usize>(&self, at: usize) -> u64 {
        let mut bytes = [0; 8];
        bytes[..N].copy_from_slice(&self.0[at..at + N]);
        u64::from_le_bytes(bytes)
    }

    fn size(&self, at: usize) -> usize {
        usize::try_from(self.number::<8>(at)).unwrap()
    }

    fn word(&self, at: usize) -> u32 {
        u32::try_from(self.number::<4>(at)).unwrap()
    }

    fn half(&self, at: usize) -> u16 {
        u16::try_from(self.number::<2>(at)).unwrap()
    }

    fn segments(&self) -> Vec<Segment> {
        let (table, entry, n) = (self.size(32), usize::from(self.half(54)), usize::from(self.half(56)));
        let segment = |at: usize| Segment {
            kind: self.word(at),
            flags: self.word(at + 4),
            offset: self.size(at + 8),
            size: self.size(at + 32),
        };
        (0..n).map(|index| segment(table + index * entry)).collect()
    }
}

// S-05
#[test]
fn the_executable_is_hardened() {
    let elf = Elf(std::fs::read(env!("CARGO_BIN_EXE_embedserve")).unwrap());
    assert_eq!(&elf.0[..6], b"\x7fELF\x02\x01", "not a file that this test can read");
    assert_eq!(elf.half(16), TYPE_SHARED, "it can be loaded at one address only");
    let segments = elf.segments();
    let one = |kind: u32| segments.iter().find(|segment| segment.kind == kind).unwrap();
    assert_eq!(one(GNU_STACK).flags & EXECUTABLE, 0, "the stack is executable");
    assert!(one(GNU_RELRO).size > 0, "relocations stay writable");
    let dynamic = one(DYNAMIC);
    let entries = (dynamic.offset..dynamic.offset + dynamic.size).step_by(16);
    let entries: Vec<(u64, u64)> = entries.map(|at| (elf.number::<8>(at), elf.number::<8>(at + 8))).collect();
    let now = |(tag, value): &(u64, u64)| {
        *tag == BIND_NOW || [FLAGS, FLAGS_1].iter().any(|(flags, bit)| tag == flags && value & bit != 0)
    };
    assert!(entries.iter().any(now), "symbols are bound while the program runs");
    assert!(entries.iter().all(|(tag, _)| ![RPATH, RUNPATH].contains(tag)), "libraries come from a path of the build");
}
