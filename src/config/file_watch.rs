//! Notices when the contents of files change.
//!
//! Folders are watched and contents are compared: editors replace a file by a new one, and
//! Kubernetes swaps a symbolic link (`..data`) in the path. A file that is open for writing is read
//! after it has been closed: half of a configuration can be a valid one.

use std::{
    collections::{BTreeSet, HashSet},
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use notify::{
    Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _,
    event::{AccessKind, AccessMode, ModifyKind},
};
use ring::digest::{SHA256, digest};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout, timeout_at},
};

/// A change is reported once no event came for this long.
const QUIET_TIME: Duration = Duration::from_millis(200);

/// A change is reported after this time even if events keep coming.
const MAX_SETTLE_TIME: Duration = Duration::from_secs(2);

/// A file that is open for writing is read after this time at the latest.
const MAX_WRITE_TIME: Duration = Duration::from_secs(10);

/// Interval at which the files are read without an event: a parent folder can have been replaced,
/// and some file systems send no events.
const RESCAN_INTERVAL: Duration = Duration::from_secs(10);

/// Why the files should be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileChange {
    /// The watch of these files has started; changes before that were not noticed.
    Started,
    /// Their contents have changed.
    Contents,
    /// Nothing has changed, but the time to retry has come.
    Retry,
}

/// Watches files for changes of their contents.
pub struct FileWatch {
    files: Vec<PathBuf>,
    /// Digests of the contents at the last read; `None` for a file that could not be read.
    seen: Vec<Option<Vec<u8>>>,
    watcher: RecommendedWatcher,
    folders: BTreeSet<PathBuf>,
    /// Folders that cannot be watched, which has been logged.
    unwatched: BTreeSet<PathBuf>,
    events: mpsc::Receiver<()>,
    open_writes: OpenWrites,
    /// Whether the files have not been read since the watch started.
    is_unread: bool,
    /// [`RESCAN_INTERVAL`], except in tests.
    rescan_interval: Duration,
}

/// Files in the watched folders that have been written to and not closed yet.
#[derive(Clone, Default)]
struct OpenWrites(Arc<Mutex<HashSet<PathBuf>>>);

impl OpenWrites {
    fn files(&self) -> MutexGuard<'_, HashSet<PathBuf>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records an event. Returns whether it can be a change of contents.
    fn record(&self, Event { kind, paths, .. }: Event) -> bool {
        let paths = paths.into_iter().filter_map(|path| fs::canonicalize(path).ok());
        match kind {
            EventKind::Modify(ModifyKind::Data(_)) => self.files().extend(paths),
            EventKind::Access(AccessKind::Close(AccessMode::Write)) => {
                let mut files = self.files();
                paths.for_each(|path| {
                    files.remove(&path);
                });
            }
            // Reading changes nothing.
            kind if kind.is_access() => return false,
            // A deleted file sends no event when it is closed.
            _ => self.files().retain(|path| path.exists()),
        }
        true
    }

    fn includes_any(&self, files: &[PathBuf]) -> bool {
        let open_writes = self.files();
        !open_writes.is_empty()
            && files
                .iter()
                .filter_map(|file| fs::canonicalize(file).ok())
                .any(|file| open_writes.contains(&file))
    }
}

impl FileWatch {
    /// Watches `files`, starting with their current contents.
    ///
    /// # Errors
    /// The system provides no further watch.
    pub fn new(files: Vec<PathBuf>) -> notify::Result<Self> {
        let (sender, events) = mpsc::channel(1);
        let open_writes = OpenWrites::default();
        let recorder = open_writes.clone();
        let watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
            // If the channel is full, the change is already signalled.
            if event.is_ok_and(|event| recorder.record(event)) {
                let _ = sender.try_send(());
            }
        })?;
        let mut watch = Self {
            files: Vec::new(),
            seen: Vec::new(),
            watcher,
            folders: BTreeSet::new(),
            unwatched: BTreeSet::new(),
            events,
            open_writes,
            is_unread: false,
            rescan_interval: RESCAN_INTERVAL,
        };
        watch.set_files(files);
        Ok(watch)
    }

    /// Watches `files` instead of the previous ones. If they differ, the watch starts anew.
    pub fn set_files(&mut self, files: Vec<PathBuf>) {
        if files != self.files {
            self.files = files;
            self.mark_as_read();
            self.is_unread = true;
        }
        self.watch_folders();
    }

    /// Marks the current contents as known. Call it before reading the files for another reason
    /// than a reported change.
    pub fn mark_as_read(&mut self) {
        self.seen = contents(&self.files);
        self.is_unread = false;
    }

    /// Waits until the contents of a file change, or until `at_most` has passed without a change.
    /// The first call returns as soon as no file is open for writing.
    pub async fn wait_for_change(&mut self, at_most: Option<Duration>) -> FileChange {
        if self.is_unread {
            self.wait_until_quiet().await;
            self.mark_as_read();
            return FileChange::Started;
        }
        loop {
            let wait =
                at_most.map_or(self.rescan_interval, |at_most| at_most.min(self.rescan_interval));
            let event = timeout(wait, self.events.recv()).await;
            if event == Ok(None) {
                return std::future::pending().await;
            }
            if event.is_ok() || self.open_writes.includes_any(&self.files) {
                self.wait_until_quiet().await;
            }
            self.watch_folders();
            let now = contents(&self.files);
            if now != self.seen {
                self.seen = now;
                return FileChange::Contents;
            }
            if event.is_err() && at_most.is_some() {
                return FileChange::Retry;
            }
        }
    }

    /// Waits until there are no more events and no open writes, up to a limit.
    async fn wait_until_quiet(&mut self) {
        let since = Instant::now();
        loop {
            let patience = match self.open_writes.includes_any(&self.files) {
                true => MAX_WRITE_TIME,
                false => MAX_SETTLE_TIME,
            };
            let now = Instant::now();
            let until = since + patience;
            if now >= until {
                return;
            }
            let more = timeout_at(until.min(now + QUIET_TIME), self.events.recv()).await;
            if more.is_err() && !self.open_writes.includes_any(&self.files) {
                return;
            }
        }
    }

    /// Watches the folders that now contain the files and the targets of their links.
    fn watch_folders(&mut self) {
        let folders: BTreeSet<PathBuf> = self.files.iter().flat_map(|file| folders(file)).collect();
        for gone in self.folders.difference(&folders) {
            let _ = self.watcher.unwatch(gone);
        }
        // Watched again even if they were watched: a folder can have been replaced by another.
        for folder in &folders {
            match self.watcher.watch(folder, RecursiveMode::NonRecursive) {
                Ok(()) => {
                    self.unwatched.remove(folder);
                }
                Err(error) if self.unwatched.insert(folder.clone()) => {
                    log::warn!(
                        "folder {} cannot be watched, checking every {RESCAN_INTERVAL:?} instead: {error}",
                        folder.display()
                    );
                }
                Err(_) => {}
            }
        }
        self.folders = folders;
    }
}

/// Returns the folder of `file`, and that of the file it is a link to.
fn folders(file: &Path) -> impl Iterator<Item = PathBuf> {
    let folder = |file: &Path| match file.parent() {
        Some(parent) if parent != Path::new("") => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    let target = fs::canonicalize(file).ok().map(|target| folder(&target));
    [folder(file)].into_iter().chain(target)
}

fn contents(files: &[PathBuf]) -> Vec<Option<Vec<u8>>> {
    let digest = |file: &PathBuf| {
        // Reading a pipe or a device could block or never end.
        let is_file = fs::metadata(file).is_ok_and(|found| found.is_file());
        let text = is_file.then(|| fs::read(file).ok())??;
        Some(digest(&SHA256, &text).as_ref().to_vec())
    };
    files.iter().map(digest).collect()
}

#[cfg(test)]
mod tests {
    use std::{io::Write as _, os::unix::fs::symlink};

    use futures_util::FutureExt as _;

    use super::*;

    struct Folder(PathBuf);

    impl Folder {
        fn new() -> Self {
            let name = format!("wsbalancer-watch-{}-{:x}", std::process::id(), fastrand::u64(..));
            let path = std::env::temp_dir().join(name);
            fs::create_dir(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    const TEST_TIMEOUT: Duration = Duration::from_secs(30);

    async fn change(watch: &mut FileWatch) -> FileChange {
        timeout(TEST_TIMEOUT, watch.wait_for_change(None)).await.expect("a change")
    }

    /// Starts a watch and reads the files once.
    async fn watch(file: &Path) -> FileWatch {
        let mut watch = FileWatch::new(vec![file.to_owned()]).unwrap();
        assert_eq!(change(&mut watch).await, FileChange::Started);
        watch
    }

    async fn expect_change(watch: &mut FileWatch) {
        assert_eq!(change(watch).await, FileChange::Contents);
    }

    #[actix_rt::test]
    async fn changed_contents_are_noticed_however_they_are_written() {
        let folder = Folder::new();
        let file = folder.0.join("a.toml");
        fs::write(&file, "one").unwrap();
        let mut watch = watch(&file).await;
        fs::write(&file, "two").unwrap();
        expect_change(&mut watch).await;
        fs::write(folder.0.join("new"), "three").unwrap();
        fs::rename(folder.0.join("new"), &file).unwrap();
        expect_change(&mut watch).await;
        fs::remove_file(&file).unwrap();
        expect_change(&mut watch).await;
        fs::write(&file, "four").unwrap();
        expect_change(&mut watch).await;
    }

    /// The kubelet does it this way: file -> ..data/file, ..data -> a folder per version.
    #[actix_rt::test]
    async fn every_swap_of_a_link_is_noticed() {
        let folder = Folder::new();
        let version = |number: u32| {
            let name = format!("..{number}");
            fs::create_dir(folder.0.join(&name)).unwrap();
            fs::write(folder.0.join(&name).join("a.toml"), number.to_string()).unwrap();
            symlink(&name, folder.0.join("..data_tmp")).unwrap();
            fs::rename(folder.0.join("..data_tmp"), folder.0.join("..data")).unwrap();
        };
        version(0);
        symlink("..data/a.toml", folder.0.join("a.toml")).unwrap();
        let mut watch = watch(&folder.0.join("a.toml")).await;
        for number in 1..4 {
            version(number);
            fs::remove_dir_all(folder.0.join(format!("..{}", number - 1))).unwrap();
            expect_change(&mut watch).await;
        }
    }

    #[actix_rt::test]
    async fn a_file_is_not_read_while_it_is_open_for_writing() {
        let folder = Folder::new();
        let file = folder.0.join("a.toml");
        fs::write(&file, "one").unwrap();
        let mut watch = watch(&file).await;
        let mut writer = fs::File::create(&file).unwrap();
        writer.write_all(b"half ").unwrap();
        // Not even for a retry.
        for again in [None, Some(QUIET_TIME)] {
            let mut changed = Box::pin(watch.wait_for_change(again));
            let quiet = timeout(3 * QUIET_TIME, &mut changed).await;
            assert!(quiet.is_err(), "half of it is no change yet");
        }
        writer.write_all(b"and half").unwrap();
        drop(writer);
        expect_change(&mut watch).await;
        assert_eq!(watch.seen, contents(&[file]));
        assert_eq!(watch.wait_for_change(Some(QUIET_TIME)).await, FileChange::Retry);
        assert!(watch.open_writes.files().is_empty());
    }

    #[actix_rt::test]
    async fn a_file_that_is_being_written_at_the_start_is_read_when_it_is_closed() {
        let folder = Folder::new();
        let file = folder.0.join("a.toml");
        let mut writer = fs::File::create(&file).unwrap();
        let mut watch = FileWatch::new(vec![file.clone()]).unwrap();
        writer.write_all(b"half ").unwrap();
        let mut changed = Box::pin(watch.wait_for_change(None));
        let quiet = timeout(3 * QUIET_TIME, &mut changed).await;
        assert!(quiet.is_err(), "half of it must not be read");
        writer.write_all(b"and half").unwrap();
        drop(writer);
        assert_eq!(changed.await, FileChange::Started);
        assert_eq!(watch.seen, contents(&[file]));
    }

    /// There are no events for changes above the folder of the file.
    #[actix_rt::test]
    async fn a_replaced_folder_is_noticed() {
        let folder = Folder::new();
        for version in ["v1", "v2"] {
            fs::create_dir(folder.0.join(version)).unwrap();
            fs::write(folder.0.join(version).join("a.toml"), version).unwrap();
        }
        let current = folder.0.join("current");
        symlink("v1", &current).unwrap();
        let mut watch = watch(&current.join("a.toml")).await;
        watch.rescan_interval = QUIET_TIME;
        symlink("v2", folder.0.join("next")).unwrap();
        fs::rename(folder.0.join("next"), &current).unwrap();
        expect_change(&mut watch).await;
    }

    /// Reading a pipe would block the thread until there is a writer.
    #[test]
    fn pipes_and_devices_are_not_read() {
        let folder = Folder::new();
        let pipe = folder.0.join("a.toml");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let (sender, read) = std::sync::mpsc::channel();
        std::thread::spawn(move || sender.send(contents(&[pipe, "/dev/zero".into()])));
        assert_eq!(read.recv_timeout(TEST_TIMEOUT), Ok(vec![None, None]));
    }

    /// The settings that name the files were read before, and the files can have changed since.
    #[actix_rt::test]
    async fn adding_files_starts_the_watch_anew() {
        let folder = Folder::new();
        let [a, b] = ["a.toml", "b.pem"].map(|name| folder.0.join(name));
        fs::write(&a, "one").unwrap();
        let mut watch = watch(&a).await;
        watch.set_files(vec![a.clone(), b]);
        assert_eq!(change(&mut watch).await, FileChange::Started);
        fs::write(&a, "two").unwrap();
        expect_change(&mut watch).await;
    }

    #[actix_rt::test]
    async fn the_target_of_a_link_is_watched_and_other_files_are_not() {
        let (folder, other) = (Folder::new(), Folder::new());
        fs::write(other.0.join("b.toml"), "one").unwrap();
        symlink(other.0.join("b.toml"), folder.0.join("a.toml")).unwrap();
        let mut watch = watch(&folder.0.join("a.toml")).await;
        fs::write(folder.0.join("other"), "x").unwrap();
        let mut changed = Box::pin(watch.wait_for_change(None));
        let quiet = timeout(3 * QUIET_TIME, &mut changed).await;
        assert!(quiet.is_err(), "another file is no change");
        assert!((&mut changed).now_or_never().is_none());
        drop(changed);
        fs::write(other.0.join("b.toml"), "two").unwrap();
        expect_change(&mut watch).await;
    }
}
