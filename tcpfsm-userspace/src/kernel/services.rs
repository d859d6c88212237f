//! Handshakes by service, as the kernel programs counted them.

use std::os::fd::{AsFd as _, OwnedFd};

use aya::maps::{HashMap, Map, MapData};
use tcpfsm_common::abi::{ServiceKey, ServiceRecord};

use super::{batch, bpf_error, chain, loader::Kernel, names, pod::Raw};
use crate::error::{Error, Result};

/// Every service and what was counted at it.
pub type Services = Vec<(ServiceKey, ServiceRecord)>;

/// Reads the map of services.
pub struct ServiceMap {
    map: HashMap<MapData, Raw<ServiceKey>, Raw<ServiceRecord>>,
    fd: OwnedFd,
}

impl ServiceMap {
    /// Takes the map out of the loaded object.
    ///
    /// # Errors
    /// The object has none, or it is of another type or size.
    pub fn take(kernel: &mut Kernel) -> Result<Self> {
        let data = kernel.take_flow_map(names::SERVICES)?;
        let misfit = |error: &dyn std::error::Error| {
            Error::Object(format!("map {}: {}", names::SERVICES, chain(error)))
        };
        let fd = data.fd().as_fd().try_clone_to_owned().map_err(|error| misfit(&error))?;
        let map = HashMap::try_from(Map::LruHashMap(data)).map_err(|error| misfit(&error))?;
        Ok(Self { map, fd })
    }

    /// What is in it now.
    ///
    /// # Errors
    /// A system call failed.
    pub fn read(&self) -> Result<Services> {
        let mut services = Services::new();
        match batch::for_each(self.fd.as_fd(), |key, record: &ServiceRecord| services.push((key, *record))) {
            Ok(()) => return Ok(services),
            // Where there is no batch lookup, one by one works.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => services.clear(),
            Err(error) => return Err(bpf_error("read the services")(&error)),
        }
        for element in self.map.iter() {
            let (Raw(key), Raw(record)) = element.map_err(|error| bpf_error("read the services")(&error))?;
            services.push((key, record));
        }
        Ok(services)
    }
}
