//! The container of a bundle: a plain `tar` of ordinary files, which any tool can list and unpack.
//!
//! Every header is a function of name and size alone: equal files give equal bytes. Reading makes use of that. Since
//! the manifest, the first member, says which members follow and how large they are, each header is compared with the
//! one that must come next, and whatever differs in a single byte is refused: other names, `..`, links, folders,
//! members that come twice, too early or not at all. Nothing in a header is ever used as a path.

use std::io::{ErrorKind, Read, Write};

use crate::excerpt::excerpt;

/// Headers and padding are in units of this.
pub(super) const BLOCK: usize = 512;
/// The end of an archive.
pub(super) const END: [u8; 2 * BLOCK] = [0; 2 * BLOCK];

/// The header of an ordinary file; `None` for a name that the format has no room for.
pub(super) fn header(name: &str, size: u64) -> Option<[u8; BLOCK]> {
    let (prefix, name) = split(name)?;
    let mut block = [0; BLOCK];
    put(&mut block, NAME, name.as_bytes());
    put(&mut block, 100, b"0000644\0");
    put(&mut block, 108, b"0000000\0");
    put(&mut block, 116, b"0000000\0");
    if size <= MAX_OCTAL {
        put(&mut block, SIZE, format!("{size:011o}\0").as_bytes());
    } else {
        // GNU's form for files of 8 GiB and more: a marker bit, then the number itself.
        put(&mut block, SIZE, &[0x80, 0, 0, 0]);
        put(&mut block, SIZE + 4, &size.to_be_bytes());
    }
    put(&mut block, 136, b"00000000000\0");
    put(&mut block, CHECKSUM, b"        ");
    block[KIND] = b'0';
    put(&mut block, 257, b"ustar\x0000");
    put(&mut block, 345, prefix.as_bytes());
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    put(&mut block, CHECKSUM, format!("{sum:06o}\0 ").as_bytes());
    Some(block)
}

/// Zeros that fill the last block of a file.
pub(super) fn padding(size: u64) -> usize {
    // Below 512, so it fits.
    usize::try_from(size.next_multiple_of(BLOCK as u64) - size).unwrap_or_default()
}

pub(super) fn write_padding(out: &mut impl Write, size: u64) -> std::io::Result<()> {
    out.write_all(&[0; BLOCK][..padding(size)])
}

/// The size in a header, for the one member whose size nothing else tells.
pub(super) fn size_in(block: &[u8; BLOCK]) -> Option<u64> {
    let field = std::str::from_utf8(&block[SIZE..SIZE + 11]).ok()?;
    field.bytes().all(|byte| byte.is_ascii_digit()).then(|| u64::from_str_radix(field, 8).ok())?
}

/// What a header that should not be there says about itself, made safe to print.
pub(super) fn describe(block: &[u8; BLOCK]) -> String {
    if block.iter().all(|byte| *byte == 0) {
        return "the end of the archive".to_owned();
    }
    let name = &block[NAME..NAME + 100];
    let name = String::from_utf8_lossy(name.split(|byte| *byte == 0).next().unwrap_or_default());
    let kind = match block[KIND] {
        b'0' | 0 => "file",
        b'1' => "hard link",
        b'2' => "symbolic link",
        b'5' => "folder",
        _ => "member of another kind",
    };
    format!("{kind} {:?}", excerpt(&name))
}

/// Fills `block`; `false` if the input ends first.
pub(super) fn read_block(input: &mut impl Read, block: &mut [u8]) -> std::io::Result<bool> {
    match input.read_exact(block) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// Name and prefix, which a slash stands between.
fn split(path: &str) -> Option<(&str, &str)> {
    if path.len() <= MAX_NAME {
        return Some(("", path));
    }
    let slashes = path.match_indices('/').map(|(at, _)| at);
    let at = slashes.rev().find(|at| *at <= MAX_PREFIX && path.len() - at - 1 <= MAX_NAME)?;
    Some((&path[..at], &path[at + 1..]))
}

fn put(block: &mut [u8; BLOCK], at: usize, bytes: &[u8]) {
    block[at..at + bytes.len()].copy_from_slice(bytes);
}

const NAME: usize = 0;
const SIZE: usize = 124;
const CHECKSUM: usize = 148;
const KIND: usize = 156;
const MAX_NAME: usize = 100;
const MAX_PREFIX: usize = 155;
/// Eleven octal digits.
const MAX_OCTAL: u64 = (1 << 33) - 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_hold_name_size_and_a_checksum_over_all_but_itself() {
        let block = header("0/1_Pooling/config.json", 190).unwrap();
        assert_eq!(&block[..24], b"0/1_Pooling/config.json\0");
        assert_eq!(&block[124..136], b"00000000276\0");
        let sum: u32 =
            block.iter().enumerate().map(|(at, b)| if (148..156).contains(&at) { 32 } else { u32::from(*b) }).sum();
        assert_eq!(&block[148..156], format!("{sum:06o}\0 ").as_bytes());
        assert_eq!(size_in(&block), Some(190));
        assert_eq!(describe(&block), "file \"0/1_Pooling/config.json\"");
        assert_eq!((padding(0), padding(1), padding(512), padding(513)), (0, 511, 0, 511));
    }

    #[test]
    fn long_names_are_split_at_a_slash_and_longer_ones_refused() {
        let folder = "f".repeat(120);
        let block = header(&format!("{folder}/config.json"), 1).unwrap();
        assert_eq!((&block[..12], &block[345..465]), (b"config.json\0".as_slice(), folder.as_bytes()));
        assert!(header(&"n".repeat(100), 1).is_some());
        assert!(header(&"n".repeat(101), 1).is_none());
        assert!(header(&format!("{}/{}", "f".repeat(156), "n".repeat(10)), 1).is_none());
    }

    #[test]
    fn sizes_beyond_eight_gibibytes_have_the_binary_form() {
        let (octal, binary) = (header("x", MAX_OCTAL).unwrap(), header("x", MAX_OCTAL + 1).unwrap());
        assert_eq!(&octal[124..136], b"77777777777\0");
        assert_eq!(&binary[124..136], [0x80, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0]);
        assert_eq!(size_in(&binary), None);
    }
}
