//! Reservations, as files: the reference's layout, so that a node can be switched over, and back, without
//! restarting its pods.
//!
//! ```text
//!   dataDir/<network>/lock                      flock(2): one call at a time
//!                     10.244.1.7                "container ID\r\ninterface": who has it
//!                     last_reserved_ip.0        where the search of set 0 went on last
//!   dataDir/.cni-bridge/<network>/<digest>      addresses of a container's interface; only for speed
//!                                 boot          the boot in which the reservations were made
//!                                 gateways      what bridges were given in that boot: "bridge address", a line each
//! ```
//!
//! A reservation is written whole to another name and then linked to its own, which fails if somebody has it: a call
//! that is killed leaves none that is half written. What the index says is believed only if the reservation says the
//! same. It has all that are made here, and, from the first call on, all that the reference has made until then; so an
//! ADD does not read the reservations of others, however many there are. A DEL that finds nothing in it does.
//!
//! Containers do not outlive the machine: in the first call after a boot, all reservations of earlier ones go, also
//! those that a power failure has left half written. So it is the note of the boot that is brought to the disk,
//! before the first reservation; a reservation itself is not, since it means nothing when it is read from there
//! again. Four times `fsync()` of a pod with two families, all of it under the lock, took 1.6 ms on an idle disk, 10 ms
//! on a busy one.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use kernel_netlink::route::LinkName;
use nix::fcntl::{Flock, FlockArg};
use sha2::{Digest, Sha256};

const INDEX: &str = ".cni-bridge";
const BOOT: &str = "boot";
const GATEWAYS: &str = "gateways";
const LAST: &str = "last_reserved_ip.";
const LOCK: &str = "lock";
/// KERNEL: another value after each boot.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// How many addresses are tried one by one before all reservations are read.
const TRIES: usize = 16;

/// Who has an address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Owner {
    /// `CNI_CONTAINERID`
    pub container: String,
    /// `CNI_IFNAME`; the reference of old did not write it.
    pub interface: Option<String>,
}

/// Something that could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{what} {path}: {source}", path = path.display())]
pub struct StoreError {
    what: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// The reservations of a network, locked for as long as this lives.
#[derive(Debug)]
pub struct Store {
    folder: PathBuf,
    index: PathBuf,
    /// Whose reservation waits to be linked, and where it is; it goes when this ends.
    draft: RefCell<Option<(Owner, PathBuf)>>,
    _lock: Flock<File>,
}

impl Drop for Store {
    fn drop(&mut self) {
        if let Some((_, path)) = self.draft.take() {
            // What is left is removed by the owner's DEL, or GC.
            let _ = remove_file(&path);
        }
    }
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError { what, path, source }
}

impl Owner {
    /// The owner of an interface.
    pub fn new(container: &str, interface: &str) -> Self {
        Self { container: container.to_owned(), interface: Some(interface.to_owned()) }
    }

    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.trim().lines().map(str::trim);
        let container = lines.next().filter(|line| !line.is_empty())?.to_owned();
        Some(Self { container, interface: lines.next().map(str::to_owned) })
    }

    /// Whether a reservation with this content is `other`'s.
    fn is(&self, other: &Self) -> bool {
        self.container == other.container && (self.interface.is_none() || self.interface == other.interface)
    }

    fn text(&self) -> String {
        match &self.interface {
            Some(interface) => format!("{}\r\n{interface}", self.container),
            None => self.container.clone(),
        }
    }

    fn draft(&self) -> String {
        format!("{}.draft", self.digest())
    }

    fn digest(&self) -> String {
        let bytes = Sha256::digest(self.text().as_bytes());
        bytes.iter().take(16).map(|byte| format!("{byte:02x}")).collect()
    }
}

impl Store {
    /// Opens and locks the reservations of a network; waits for other calls.
    ///
    /// # Errors
    /// When the folder cannot be made, locked or read.
    pub fn open(data_dir: &Path, network: &str) -> Result<Self, StoreError> {
        Self::open_in_boot(data_dir, network, Path::new(BOOT_ID))
    }

    fn open_in_boot(data_dir: &Path, network: &str, boot_id: &Path) -> Result<Self, StoreError> {
        let (folder, index) = (data_dir.join(network), data_dir.join(INDEX).join(network));
        let path = folder.join(LOCK);
        let open = || OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
        let file = match open() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::create_dir_all(&folder).map_err(failed("making", &folder))?;
                open()
            }
            opened => opened,
        };
        let file = file.map_err(failed("opening", &path))?;
        let lock = Flock::lock(file, FlockArg::LockExclusive)
            .map_err(|(_, errno)| failed("locking", &path)(errno.into()))?;
        let store = Self { folder, index, draft: RefCell::default(), _lock: lock };
        store.forget_earlier_boots(boot_id)?;
        Ok(store)
    }

    fn forget_earlier_boots(&self, boot_id: &Path) -> Result<(), StoreError> {
        let now = fs::read_to_string(boot_id).map_err(failed("reading", boot_id))?;
        let path = self.index.join(BOOT);
        let known = match fs::read_to_string(&path) {
            Ok(known) => Some(known),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(failed("reading", &path)(error)),
        };
        if known.as_ref() == Some(&now) {
            return Ok(());
        }
        if known.is_none() {
            fs::create_dir_all(&self.index).map_err(failed("making", &self.index))?;
            // They may be the reference's, of this boot.
            self.index_all()?;
        } else {
            for ip in self.reserved()? {
                self.remove(ip)?;
            }
            for entry in fs::read_dir(&self.index).map_err(failed("reading", &self.index))?.flatten() {
                remove_file(&entry.path())?;
            }
        }
        self.write(&path, &now)
    }

    /// Makes an index of what others have reserved.
    fn index_all(&self) -> Result<(), StoreError> {
        let mut owners: BTreeMap<Owner, BTreeSet<IpAddr>> = BTreeMap::new();
        for ip in self.reserved()? {
            if let Some(owner) = self.owner(ip)? {
                owners.entry(owner).or_default().insert(ip);
            }
        }
        owners.iter().try_for_each(|(owner, ips)| self.add_to_index(owner, ips))
    }

    /// All addresses that somebody has.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn reserved(&self) -> Result<BTreeSet<IpAddr>, StoreError> {
        let entries = fs::read_dir(&self.folder).map_err(failed("reading", &self.folder))?;
        let names = entries.flatten().map(|entry| entry.file_name());
        Ok(names.filter_map(|name| name.to_str()?.parse().ok()).collect())
    }

    /// Who has an address.
    ///
    /// # Errors
    /// When the reservation is there and cannot be read.
    pub fn owner(&self, ip: IpAddr) -> Result<Option<Owner>, StoreError> {
        let path = self.folder.join(ip.to_string());
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Owner::parse(&text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("reading", &path)(error)),
        }
    }

    /// Reserves an address. False if somebody has it.
    ///
    /// # Errors
    /// When nothing can be written.
    pub fn reserve(&self, ip: IpAddr, owner: &Owner) -> Result<bool, StoreError> {
        let path = self.folder.join(ip.to_string());
        let draft = self.draft(owner)?;
        // ORDER: in the index first. An entry without its reservation means nothing.
        self.add_to_index(owner, &BTreeSet::from([ip]))?;
        match fs::hard_link(&draft, &path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(failed("writing", &path)(error)),
        }
    }

    /// What reservations of an owner are links to. Written by this call: what an earlier one has left may be half of
    /// it.
    fn draft(&self, owner: &Owner) -> Result<PathBuf, StoreError> {
        let mut draft = self.draft.borrow_mut();
        match &*draft {
            Some((known, path)) if known == owner => Ok(path.clone()),
            _ => {
                let path = self.index.join(owner.draft());
                write_whole(&path, &owner.text()).map_err(failed("writing", &path))?;
                if let Some((_, old)) = draft.replace((owner.clone(), path.clone())) {
                    remove_file(&old)?;
                }
                Ok(path)
            }
        }
    }

    /// The addresses of an owner, if they are in the index.
    ///
    /// # Errors
    /// When the reservations cannot be read.
    pub fn known_addresses(&self, owner: &Owner) -> Result<BTreeSet<IpAddr>, StoreError> {
        self.of_owner(self.indexed(owner)?, owner)
    }

    /// The addresses of an owner. All reservations are read if none is in the index.
    ///
    /// # Errors
    /// When the reservations cannot be read.
    pub fn addresses(&self, owner: &Owner) -> Result<BTreeSet<IpAddr>, StoreError> {
        let known = self.known_addresses(owner)?;
        if known.is_empty() { self.of_owner(self.reserved()?, owner) } else { Ok(known) }
    }

    fn of_owner(&self, ips: BTreeSet<IpAddr>, owner: &Owner) -> Result<BTreeSet<IpAddr>, StoreError> {
        let mut found = BTreeSet::new();
        for ip in ips {
            if self.owner(ip)?.is_some_and(|found| found.is(owner)) {
                found.insert(ip);
            }
        }
        Ok(found)
    }

    /// Releases the addresses of an owner, and gives them.
    ///
    /// # Errors
    /// When they cannot be read or removed.
    pub fn release(&self, owner: &Owner) -> Result<BTreeSet<IpAddr>, StoreError> {
        let addresses = self.addresses(owner)?;
        for ip in &addresses {
            self.remove(*ip)?;
        }
        // What a call that was killed had begun to write, too.
        self.draft.take();
        for name in [owner.digest(), owner.draft()] {
            remove_file(&self.index.join(name))?;
        }
        Ok(addresses)
    }

    /// Releases the addresses of all owners but those that `keep` takes, and gives them.
    ///
    /// # Errors
    /// When they cannot be read or removed.
    pub fn release_others(&self, keep: impl Fn(&Owner) -> bool) -> Result<BTreeSet<IpAddr>, StoreError> {
        let (mut gone, mut kept) = (BTreeSet::new(), BTreeSet::from([BOOT, GATEWAYS].map(str::to_owned)));
        for ip in self.reserved()? {
            // One without an owner was half written by somebody who is not there any more: we have the lock.
            match self.owner(ip)?.filter(&keep) {
                Some(owner) => {
                    kept.insert(owner.digest());
                }
                None => {
                    self.remove(ip)?;
                    gone.insert(ip);
                }
            }
        }
        // What calls that were killed had begun to write, too.
        self.draft.take();
        for entry in fs::read_dir(&self.index).map_err(failed("reading", &self.index))?.flatten() {
            if !entry.file_name().to_str().is_some_and(|name| kept.contains(name)) {
                remove_file(&entry.path())?;
            }
        }
        Ok(gone)
    }

    /// Notes that a bridge is given the address of a gateway.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn note_gateway(&self, bridge: &LinkName, gateway: IpNet) -> Result<(), StoreError> {
        if self.has_noted_gateway(bridge, gateway)? {
            return Ok(());
        }
        let path = self.index.join(GATEWAYS);
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(&path);
        file.and_then(|mut file| file.write_all(format!("{bridge} {gateway}\n").as_bytes()))
            .map_err(failed("writing", &path))
    }

    /// Whether [`Store::note_gateway`] was told of it in this boot.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn has_noted_gateway(&self, bridge: &LinkName, gateway: IpNet) -> Result<bool, StoreError> {
        let path = self.index.join(GATEWAYS);
        let line = format!("{bridge} {gateway}");
        match fs::read_to_string(&path) {
            Ok(text) => Ok(text.lines().any(|noted| noted == line)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(failed("reading", &path)(error)),
        }
    }

    /// Where the search of a set went on last.
    pub fn last(&self, set: usize) -> Option<IpAddr> {
        fs::read_to_string(self.folder.join(format!("{LAST}{set}"))).ok()?.trim().parse().ok()
    }

    /// Notes where the search of a set goes on.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn set_last(&self, set: usize, ip: IpAddr) -> Result<(), StoreError> {
        let path = self.folder.join(format!("{LAST}{set}"));
        let write = || {
            // KERNEL: a file that is emptied first is brought to the disk when it is closed (`auto_da_alloc` of ext4).
            let mut file =
                OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path)?;
            let text = ip.to_string();
            file.write_all(text.as_bytes())?;
            file.set_len(text.len() as u64)
        };
        write().map_err(failed("writing", &path))
    }

    /// Reserves the first of some addresses that nobody has.
    ///
    /// # Errors
    /// When nothing can be read or written.
    pub fn reserve_first<T>(
        &self,
        mut candidates: impl Iterator<Item = (T, IpAddr)>,
        owner: &Owner,
    ) -> Result<Option<(T, IpAddr)>, StoreError> {
        for (thing, ip) in candidates.by_ref().take(TRIES) {
            if !self.folder.join(ip.to_string()).exists() && self.reserve(ip, owner)? {
                return Ok(Some((thing, ip)));
            }
        }
        let taken = self.reserved()?;
        for (thing, ip) in candidates.filter(|(_, ip)| !taken.contains(ip)) {
            if self.reserve(ip, owner)? {
                return Ok(Some((thing, ip)));
            }
        }
        Ok(None)
    }

    fn remove(&self, ip: IpAddr) -> Result<(), StoreError> {
        remove_file(&self.folder.join(ip.to_string()))
    }

    fn indexed(&self, owner: &Owner) -> Result<BTreeSet<IpAddr>, StoreError> {
        let path = self.index.join(owner.digest());
        match fs::read_to_string(&path) {
            Ok(text) => Ok(text.lines().filter_map(|line| line.parse().ok()).collect()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeSet::new()),
            Err(error) => Err(failed("reading", &path)(error)),
        }
    }

    fn add_to_index(&self, owner: &Owner, ips: &BTreeSet<IpAddr>) -> Result<(), StoreError> {
        let text: String = ips.iter().map(|ip| format!("{ip}\n")).collect();
        let path = self.index.join(owner.digest());
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(&path);
        file.and_then(|mut file| file.write_all(text.as_bytes())).map_err(failed("writing", &path))
    }

    /// Replaces a file as a whole, and brings it to the disk.
    fn write(&self, path: &Path, text: &str) -> Result<(), StoreError> {
        let draft = path.with_extension("draft");
        let write = || {
            write_whole(&draft, text)?.sync_data()?;
            fs::rename(&draft, path)?;
            File::open(&self.index)?.sync_all()
        };
        write().map_err(failed("writing", path))
    }
}

fn write_whole(path: &Path, text: &str) -> io::Result<File> {
    let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    Ok(file)
}

fn remove_file(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("removing", path)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(last: u8) -> IpAddr {
        [10, 1, 2, last].into()
    }

    fn set(lasts: &[u8]) -> BTreeSet<IpAddr> {
        lasts.iter().map(|last| ip(*last)).collect()
    }

    #[test]
    fn an_address_has_one_owner_until_it_is_released() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), "net").unwrap();
        let (a, b) = (Owner::new("a", "eth0"), Owner::new("b", "eth0"));
        assert!(store.reserve(ip(2), &a).unwrap());
        assert!(!store.reserve(ip(2), &b).unwrap());
        assert!(store.reserve(ip(3), &a).unwrap());
        assert_eq!(store.addresses(&a).unwrap(), set(&[2, 3]));
        assert_eq!(store.addresses(&b).unwrap(), set(&[]));
        assert_eq!(fs::read_to_string(folder.path().join("net/10.1.2.2")).unwrap(), "a\r\neth0");
        assert_eq!(store.release(&a).unwrap(), set(&[2, 3]));
        assert_eq!(store.release(&a).unwrap(), set(&[]));
        assert!(store.reserve(ip(2), &b).unwrap());
    }

    #[test]
    fn reservations_of_the_reference_are_found_also_those_of_old() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("net")).unwrap();
        fs::write(folder.path().join("net/10.1.2.2"), "a\r\neth0").unwrap();
        fs::write(folder.path().join("net/10.1.2.3"), " b \n").unwrap();
        let store = Store::open(folder.path(), "net").unwrap();
        assert_eq!(store.addresses(&Owner::new("a", "eth1")).unwrap(), set(&[]));
        assert_eq!(store.release(&Owner::new("a", "eth0")).unwrap(), set(&[2]));
        assert_eq!(store.release(&Owner::new("b", "eth7")).unwrap(), set(&[3]));
    }

    #[test]
    fn containers_of_an_earlier_boot_have_no_addresses_and_those_of_this_boot_keep_theirs() {
        let folder = tempfile::tempdir().unwrap();
        let boot = folder.path().join("boot_id");
        let open = |id: &str| {
            fs::write(&boot, id).unwrap();
            Store::open_in_boot(folder.path(), "net", &boot).unwrap()
        };
        fs::create_dir(folder.path().join("net")).unwrap();
        fs::write(folder.path().join("net/10.1.2.9"), "reference\r\neth0").unwrap();
        drop(open("one"));
        let store = open("one");
        assert_eq!(store.known_addresses(&Owner::new("reference", "eth0")).unwrap(), set(&[9]));
        store.reserve(ip(2), &Owner::new("a", "eth0")).unwrap();
        assert_eq!(store.reserved().unwrap(), set(&[2, 9]));
        drop(store);
        assert_eq!(open("two").reserved().unwrap(), set(&[]));
    }

    #[test]
    fn half_written_reservations_and_unlisted_owners_are_released() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), "net").unwrap();
        let (a, b) = (Owner::new("a", "eth0"), Owner::new("b", "eth0"));
        store.reserve(ip(2), &a).unwrap();
        store.reserve(ip(3), &b).unwrap();
        fs::write(folder.path().join("net/10.1.2.4"), "").unwrap();
        // Killed before the reservation.
        store.add_to_index(&Owner::new("c", "eth0"), &set(&[5])).unwrap();
        let (bridge, gateway) = (LinkName::new("br").unwrap(), "10.1.2.1/24".parse().unwrap());
        store.note_gateway(&bridge, gateway).unwrap();
        assert_eq!(store.release_others(|owner| *owner == a).unwrap(), set(&[3, 4]));
        assert!(store.has_noted_gateway(&bridge, gateway).unwrap());
        assert!(!store.has_noted_gateway(&bridge, "10.1.2.1/25".parse().unwrap()).unwrap());
        assert_eq!(store.reserved().unwrap(), set(&[2]));
        assert_eq!(store.addresses(&a).unwrap(), set(&[2]));
        let index: Vec<_> =
            fs::read_dir(&store.index).unwrap().flatten().map(|entry| entry.file_name()).collect();
        assert_eq!(index.len(), 3, "{index:?}");
    }

    #[test]
    fn a_full_range_is_searched_by_one_look_at_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), "net").unwrap();
        for last in 2..250 {
            fs::write(folder.path().join(format!("net/10.1.2.{last}")), "x\r\neth0").unwrap();
        }
        let owner = Owner::new("a", "eth0");
        let all = (2..=250).map(|last| ((), ip(last)));
        assert_eq!(store.reserve_first(all.clone(), &owner).unwrap(), Some(((), ip(250))));
        assert_eq!(store.reserve_first(all, &owner).unwrap(), None);
    }
}
