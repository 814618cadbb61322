//! Where models compute: what `--device` asks for, and what this machine and this build have.

use super::ConfigError;
use crate::kernel::Target;

/// Where every model computes, and why there.
#[derive(Debug, Clone)]
pub struct DeviceChoice {
    /// At least one; several GPUs, or the CPU alone.
    pub targets: Vec<Target>,
    pub why: String,
}

impl DeviceChoice {
    fn one(target: Target, why: String) -> Self {
        Self { targets: vec![target], why }
    }

    /// All devices, as `--device` names them, with their own names.
    pub fn label(&self) -> String {
        self.targets.iter().map(Target::label).collect::<Vec<_>>().join(", ")
    }

    pub fn is_cpu(&self) -> bool {
        self.targets.iter().any(|target| matches!(target, Target::Cpu))
    }
}

/// How the kernels of small batches are launched on a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Launches {
    /// As one, once they have been recorded.
    Recorded,
    OneByOne,
}

/// Opens what was asked for. `auto` alone may choose; a GPU that was named and cannot be used is an error.
///
/// # Errors
/// A name that is none, or a device that this build or this machine does not have.
pub fn choose(device: &str, launches: Launches) -> Result<DeviceChoice, ConfigError> {
    let invalid = |reason: String| ConfigError::Invalid { flag: "--device", value: device.to_owned(), reason };
    match device {
        "cpu" => Ok(DeviceChoice::one(Target::Cpu, "--device cpu".to_owned())),
        "auto" => Ok(automatic(launches)),
        _ => {
            let ordinals = ordinals(device).map_err(|reason| invalid(reason.to_owned()))?;
            let open = |ordinal| open(ordinal, launches);
            let targets = ordinals.into_iter().map(open).collect::<Result<_, String>>().map_err(invalid)?;
            Ok(DeviceChoice { targets, why: format!("--device {device}") })
        }
    }
}

/// The GPUs of a list, each of them once.
fn ordinals(devices: &str) -> Result<Vec<usize>, &'static str> {
    let mut ordinals = Vec::new();
    for device in devices.split(',') {
        let ordinal =
            ordinal(device.trim()).ok_or("expected auto, cpu, cuda or cuda:N, or several GPUs: cuda:0,cuda:1")?;
        if ordinals.contains(&ordinal) {
            return Err("a GPU is named twice");
        }
        ordinals.push(ordinal);
    }
    Ok(ordinals)
}

fn ordinal(device: &str) -> Option<usize> {
    match device.strip_prefix("cuda")? {
        "" => Some(0),
        rest => rest.strip_prefix(':')?.parse().ok(),
    }
}

#[cfg(feature = "cuda")]
fn open(ordinal: usize, launches: Launches) -> Result<Target, String> {
    let device = crate::kernel::cuda::Device::open(ordinal).map_err(|error| error.to_string())?;
    Ok(Target::Cuda(match launches {
        Launches::Recorded => device,
        Launches::OneByOne => device.without_recordings(),
    }))
}

#[cfg(not(feature = "cuda"))]
fn open(_ordinal: usize, _launches: Launches) -> Result<Target, String> {
    Err("this build computes on the CPU only; use cpu or auto, or build with --features cuda".to_owned())
}

#[cfg(feature = "cuda")]
fn automatic(launches: Launches) -> DeviceChoice {
    if crate::kernel::cuda::count() == 0 {
        return DeviceChoice::one(Target::Cpu, "auto: no NVIDIA GPU was found".to_owned());
    }
    match open(0, launches) {
        Ok(target) => DeviceChoice::one(target, "auto: the first GPU".to_owned()),
        Err(error) => DeviceChoice::one(Target::Cpu, format!("auto: the GPU cannot be used: {error}")),
    }
}

#[cfg(not(feature = "cuda"))]
fn automatic(_launches: Launches) -> DeviceChoice {
    DeviceChoice::one(Target::Cpu, "auto: this build computes on the CPU only".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_named_as_elsewhere() {
        for (names, expected) in [
            ("cuda", vec![0]),
            ("cuda:0", vec![0]),
            ("cuda:12", vec![12]),
            ("cuda:0,cuda:1", vec![0, 1]),
            ("cuda:3, cuda", vec![3, 0]),
        ] {
            assert_eq!(ordinals(names), Ok(expected), "{names}");
        }
        for names in
            ["gpu", "cuda:", "cuda:-1", "cuda0", "cuda:0,", "cuda:0,cpu", "auto,cuda", "CUDA", "", "cuda:1,cuda:1"]
        {
            assert!(ordinals(names).is_err(), "{names}");
            assert!(choose(names, Launches::Recorded).unwrap_err().to_string().contains("--device"), "{names}");
        }
        assert!(choose("cuda,cuda:0", Launches::Recorded).unwrap_err().to_string().contains("named twice"));
        assert!(choose("cpu", Launches::OneByOne).unwrap().is_cpu());
    }

    // Nothing falls back by itself. No machine has so many.
    #[test]
    fn a_device_that_is_not_there_is_an_error() {
        let error = choose("cuda:4095", Launches::Recorded).unwrap_err().to_string();
        assert!(error.contains("cuda:4095"), "{error}");
    }
}
