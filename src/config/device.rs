//! Where models compute: what `--device` asks for, and what this machine and this build have.

use super::ConfigError;
use crate::kernel::Target;

/// A target, and why it was taken.
#[derive(Debug, Clone)]
pub struct Place {
    pub target: Target,
    pub why: String,
}

/// Opens what was asked for. `auto` alone may choose; a GPU that was named and cannot be used is an error.
///
/// # Errors
/// A name that is none, or a device that this build or this machine does not have.
pub fn place(device: &str) -> Result<Place, ConfigError> {
    let invalid = |reason: String| ConfigError::Invalid { flag: "--device", value: device.to_owned(), reason };
    match device {
        "cpu" => Ok(Place { target: Target::Cpu, why: "--device cpu".to_owned() }),
        "auto" => Ok(automatic()),
        _ => {
            let ordinal = ordinal(device).ok_or_else(|| invalid("expected auto, cpu, cuda or cuda:N".to_owned()))?;
            let target = open(ordinal).map_err(invalid)?;
            Ok(Place { target, why: format!("--device {device}") })
        }
    }
}

fn ordinal(device: &str) -> Option<usize> {
    match device.strip_prefix("cuda")? {
        "" => Some(0),
        rest => rest.strip_prefix(':')?.parse().ok(),
    }
}

#[cfg(feature = "cuda")]
fn open(ordinal: usize) -> Result<Target, String> {
    crate::kernel::cuda::Device::open(ordinal).map(Target::Cuda).map_err(|error| error.to_string())
}

#[cfg(not(feature = "cuda"))]
fn open(_ordinal: usize) -> Result<Target, String> {
    Err("this build computes on the CPU only; use cpu or auto, or build with --features cuda".to_owned())
}

#[cfg(feature = "cuda")]
fn automatic() -> Place {
    use crate::kernel::cuda::{Device, count};
    if count() == 0 {
        return Place { target: Target::Cpu, why: "auto: no NVIDIA GPU was found".to_owned() };
    }
    match Device::open(0) {
        Ok(device) => Place { target: Target::Cuda(device), why: "auto: the first GPU".to_owned() },
        Err(error) => Place { target: Target::Cpu, why: format!("auto: the GPU cannot be used: {error}") },
    }
}

#[cfg(not(feature = "cuda"))]
fn automatic() -> Place {
    Place { target: Target::Cpu, why: "auto: this build computes on the CPU only".to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_named_as_elsewhere() {
        for (name, expected) in [("cuda", Some(0)), ("cuda:0", Some(0)), ("cuda:12", Some(12))] {
            assert_eq!(ordinal(name), expected, "{name}");
        }
        for name in ["gpu", "cuda:", "cuda:-1", "cuda0", "cuda:0,cuda:1", "CUDA", ""] {
            assert_eq!(ordinal(name), None, "{name}");
            assert!(place(name).unwrap_err().to_string().contains("--device"), "{name}");
        }
        assert!(matches!(place("cpu").unwrap().target, Target::Cpu));
    }

    // Nothing falls back by itself. No machine has so many.
    #[test]
    fn a_device_that_is_not_there_is_an_error() {
        let error = place("cuda:4095").unwrap_err().to_string();
        assert!(error.contains("cuda:4095"), "{error}");
    }
}
