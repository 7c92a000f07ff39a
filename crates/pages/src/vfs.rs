//! A VFS in Rust over the one that SQLite brings: the only place with `unsafe` code.
//!
//! A [`Layer`] is asked about the files it follows: before they are written, truncated, synced and deleted, after they
//! are read. Everything else goes to the VFS below as it comes. Files that no layer follows are opened by the VFS below
//! alone. Memory-mapped reading is off for followed files, since nothing could look at it.

use rusqlite::{Connection, ffi};
use std::ffi::{CStr, OsStr, c_char, c_int, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;
use std::sync::{Mutex, PoisonError};

/// What a file is to SQLite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A database.
    Database,
    /// Its write-ahead log.
    Wal,
    /// Its rollback journal.
    Journal,
    /// Something temporary.
    Other,
}

impl Kind {
    fn of(flags: c_int) -> Self {
        match flags {
            _ if flags & ffi::SQLITE_OPEN_MAIN_DB != 0 => Kind::Database,
            _ if flags & ffi::SQLITE_OPEN_WAL != 0 => Kind::Wal,
            _ if flags & ffi::SQLITE_OPEN_MAIN_JOURNAL != 0 => Kind::Journal,
            _ => Kind::Other,
        }
    }
}

/// What is done with followed files. Answers are SQLite's result codes. Nothing here may panic: SQLite cannot unwind.
pub(crate) trait Layer: Send + Sync + 'static {
    /// What is kept for an open file.
    type File: Send + 'static;

    /// Whether a file is followed.
    fn open(&self, path: &Path, kind: Kind) -> Option<Self::File>;

    /// After a read that got everything it asked for.
    fn check(&self, _file: &mut Self::File, _below: &mut Below, _bytes: &[u8], _offset: u64) -> c_int {
        ffi::SQLITE_OK
    }

    /// Writes, or does not.
    fn write(&self, file: &mut Self::File, below: &mut Below, bytes: &[u8], offset: u64) -> c_int;

    /// Sets the length, or does not.
    fn truncate(&self, _file: &mut Self::File, below: &mut Below, bytes: u64) -> c_int {
        below.truncate(bytes)
    }

    /// Makes durable what was written, or does not.
    fn sync(&self, _file: &mut Self::File, below: &mut Below, flags: c_int) -> c_int {
        below.sync(flags)
    }

    /// Before a file is deleted; anything but `SQLITE_OK` keeps it.
    fn delete(&self, _path: &Path) -> c_int {
        ffi::SQLITE_OK
    }

    /// The characteristics of the device (`SQLITE_IOCAP_…`).
    fn characteristics(&self, below: c_int) -> c_int {
        below
    }
}

/// The open file of the VFS below.
pub(crate) struct Below(*mut ffi::sqlite3_file);

/// Calls a method of the file below; a method that is missing fails.
macro_rules! ask {
    ($below:expr, $method:ident $(, $given:expr)*) => {{
        let below: *mut ffi::sqlite3_file = $below;
        // SAFETY: `below` was opened by the VFS below and is not closed yet, so its methods are set and may be called.
        match unsafe { (*(*below).pMethods).$method } {
            // SAFETY: as above; the arguments are those that SQLite gave, or point to memory that lives through the call.
            Some(method) => unsafe { method(below $(, $given)*) },
            None => ffi::SQLITE_IOERR,
        }
    }};
}

impl Below {
    /// Reads; `SQLITE_IOERR_SHORT_READ` when the file ends before.
    pub fn read(&mut self, bytes: &mut [u8], offset: u64) -> c_int {
        ask!(self.0, xRead, bytes.as_mut_ptr().cast(), length(bytes), offset as i64)
    }

    /// Writes all of it.
    pub fn write(&mut self, bytes: &[u8], offset: u64) -> c_int {
        ask!(self.0, xWrite, bytes.as_ptr().cast(), length(bytes), offset as i64)
    }

    /// Sets the length.
    pub fn truncate(&mut self, bytes: u64) -> c_int {
        ask!(self.0, xTruncate, bytes as i64)
    }

    /// Makes durable what was written.
    pub fn sync(&mut self, flags: c_int) -> c_int {
        ask!(self.0, xSync, flags)
    }
}

/// SQLite reads and writes at most a page at a time, so the length always fits.
fn length(bytes: &[u8]) -> c_int {
    c_int::try_from(bytes.len()).unwrap_or(c_int::MAX)
}

/// A registered layer. It lives as long as the process, as SQLite may use it any time.
struct Shim<L: Layer> {
    vfs: ffi::sqlite3_vfs,
    methods: ffi::sqlite3_io_methods,
    below: *mut ffi::sqlite3_vfs,
    layer: L,
}

/// A followed file, as it lies in the memory that SQLite gives; the file of the VFS below lies right behind it.
#[repr(C, align(8))]
struct File<L: Layer> {
    base: ffi::sqlite3_file,
    shim: *const Shim<L>,
    state: L::File,
}

/// Registers a layer over the VFS named `below`, or over the default one.
pub(crate) fn register<L: Layer>(name: &'static CStr, below: Option<&CStr>, layer: L) -> rusqlite::Result<()> {
    static ONE_BY_ONE: Mutex<()> = Mutex::new(());
    // SQLite gives 8-byte alignment, no more.
    const { assert!(align_of::<File<L>>() == 8) };
    let _one = ONE_BY_ONE.lock().unwrap_or_else(PoisonError::into_inner);
    // SAFETY: the name ends with a zero byte.
    if !unsafe { ffi::sqlite3_vfs_find(name.as_ptr()) }.is_null() {
        return Ok(());
    }
    // SAFETY: a null pointer asks for the default VFS, anything else is a name that ends with a zero byte.
    let below = unsafe { ffi::sqlite3_vfs_find(below.map_or(ptr::null(), CStr::as_ptr)) };
    if below.is_null() {
        return outcome(ffi::SQLITE_ERROR);
    }
    // SAFETY: a VFS that SQLite found stays valid; nothing here unregisters one.
    let (bytes_below, path_max) = unsafe { ((*below).szOsFile, (*below).mxPathname) };
    let shim = Box::new(Shim { vfs: vfs::<L>(name, bytes_below, path_max), methods: methods::<L>(), below, layer });
    let shim = Box::into_raw(shim);
    // SAFETY: the shim is never freed, so SQLite may keep the pointers; nobody else has them yet.
    let code = unsafe {
        (*shim).vfs.pAppData = shim.cast();
        ffi::sqlite3_vfs_register(&raw mut (*shim).vfs, 0)
    };
    outcome(code)
}

/// Asks that a new database leave 8 bytes free at the end of each page. It must be done before anything else: a database
/// that has pages keeps what it has.
pub fn reserve(connection: &Connection) -> rusqlite::Result<()> {
    let mut bytes = crate::checksum::BYTES as c_int;
    // SAFETY: the handle is that of an open connection, the operation takes a pointer to an int, which outlives the call.
    let code = unsafe {
        let operation = ffi::SQLITE_FCNTL_RESERVE_BYTES;
        ffi::sqlite3_file_control(connection.handle(), c"main".as_ptr(), operation, (&raw mut bytes).cast())
    };
    outcome(code)
}

fn outcome(code: c_int) -> rusqlite::Result<()> {
    if code == ffi::SQLITE_OK { Ok(()) } else { Err(rusqlite::Error::SqliteFailure(ffi::Error::new(code), None)) }
}

fn vfs<L: Layer>(name: &'static CStr, bytes_below: c_int, path_max: c_int) -> ffi::sqlite3_vfs {
    ffi::sqlite3_vfs {
        // Version 3 would add the functions that replace system calls, which are the business of the VFS below.
        iVersion: 2,
        szOsFile: size_of::<File<L>>() as c_int + bytes_below,
        mxPathname: path_max,
        pNext: ptr::null_mut(),
        zName: name.as_ptr(),
        pAppData: ptr::null_mut(),
        xOpen: Some(open::<L>),
        xDelete: Some(delete::<L>),
        xAccess: Some(access::<L>),
        xFullPathname: Some(full_pathname::<L>),
        xDlOpen: Some(dl_open::<L>),
        xDlError: Some(dl_error::<L>),
        xDlSym: Some(dl_sym::<L>),
        xDlClose: Some(dl_close::<L>),
        xRandomness: Some(randomness::<L>),
        xSleep: Some(sleep::<L>),
        xCurrentTime: Some(current_time::<L>),
        xGetLastError: Some(last_error::<L>),
        xCurrentTimeInt64: Some(current_time_int64::<L>),
        xSetSystemCall: None,
        xGetSystemCall: None,
        xNextSystemCall: None,
    }
}

fn methods<L: Layer>() -> ffi::sqlite3_io_methods {
    ffi::sqlite3_io_methods {
        iVersion: 3,
        xClose: Some(close::<L>),
        xRead: Some(read::<L>),
        xWrite: Some(write::<L>),
        xTruncate: Some(truncate::<L>),
        xSync: Some(sync::<L>),
        xFileSize: Some(file_size::<L>),
        xLock: Some(lock::<L>),
        xUnlock: Some(unlock::<L>),
        xCheckReservedLock: Some(check_reserved_lock::<L>),
        xFileControl: Some(file_control::<L>),
        xSectorSize: Some(sector_size::<L>),
        xDeviceCharacteristics: Some(characteristics::<L>),
        xShmMap: Some(shm_map::<L>),
        xShmLock: Some(shm_lock::<L>),
        xShmBarrier: Some(shm_barrier::<L>),
        xShmUnmap: Some(shm_unmap::<L>),
        xFetch: Some(fetch),
        xUnfetch: Some(unfetch),
    }
}

/// The shim that a VFS belongs to.
///
/// # Safety
/// `vfs` must be one that [`register`] registered for `L`.
unsafe fn shim_of<'a, L: Layer>(vfs: *mut ffi::sqlite3_vfs) -> &'a Shim<L> {
    // SAFETY: `register` put the address of the shim there, and it is never freed.
    unsafe { &*(*vfs).pAppData.cast::<Shim<L>>() }
}

/// A path as SQLite gives it.
///
/// # Safety
/// `name` must end with a zero byte and live as long as the path is used.
unsafe fn path_of<'a>(name: *const c_char) -> &'a Path {
    // SAFETY: as promised.
    Path::new(OsStr::from_bytes(unsafe { CStr::from_ptr(name) }.to_bytes()))
}

/// The file below a followed one.
///
/// # Safety
/// `file` must point to `szOsFile` bytes, as SQLite gives them to `xOpen`.
unsafe fn below_of<L: Layer>(file: *mut ffi::sqlite3_file) -> *mut ffi::sqlite3_file {
    // SAFETY: `szOsFile` has room for both, and the size of `File` is a multiple of its alignment.
    unsafe { file.cast::<u8>().add(size_of::<File<L>>()).cast() }
}

/// Layer, state and file below of a followed file.
///
/// # Safety
/// `file` must have been opened by [`open`] for `L` and not be closed. SQLite uses a file from one thread at a time.
unsafe fn parts<'a, L: Layer>(file: *mut ffi::sqlite3_file) -> (&'a L, &'a mut L::File, Below) {
    // SAFETY: `open` wrote a whole `File` there; shims are never freed; nobody else uses the state meanwhile.
    unsafe {
        let followed = file.cast::<File<L>>();
        (&(*(*followed).shim).layer, &mut (*followed).state, Below(below_of::<L>(file)))
    }
}

unsafe extern "C" fn open<L: Layer>(
    vfs: *mut ffi::sqlite3_vfs,
    name: ffi::sqlite3_filename,
    file: *mut ffi::sqlite3_file,
    flags: c_int,
    out_flags: *mut c_int,
) -> c_int {
    // SAFETY: SQLite calls this with the VFS that it was registered for.
    let shim = unsafe { shim_of::<L>(vfs) };
    // SAFETY: a VFS that SQLite found stays valid.
    let Some(open_below) = (unsafe { (*shim.below).xOpen }) else { return ffi::SQLITE_CANTOPEN };
    let is_named = !name.is_null();
    // SAFETY: SQLite's names end with a zero byte and outlive the call.
    let state = if is_named { shim.layer.open(unsafe { path_of(name) }, Kind::of(flags)) } else { None };
    let Some(state) = state else {
        // SAFETY: the arguments are SQLite's own, and there is more room than the VFS below asks for.
        return unsafe { open_below(shim.below, name, file, flags, out_flags) };
    };
    // SAFETY: SQLite gives `szOsFile` bytes, aligned to 8, which nobody else uses: room for our file and the one below.
    let (code, below) = unsafe {
        let below = below_of::<L>(file);
        (*file).pMethods = ptr::null();
        (*below).pMethods = ptr::null();
        (open_below(shim.below, name, below, flags, out_flags), below)
    };
    // SAFETY: as above.
    if code != ffi::SQLITE_OK && unsafe { !(*below).pMethods.is_null() } {
        // A file that failed to open is closed all the same when it has methods.
        ask!(below, xClose);
    }
    if code == ffi::SQLITE_OK {
        let base = ffi::sqlite3_file { pMethods: &raw const shim.methods };
        // SAFETY: as above.
        unsafe { file.cast::<File<L>>().write(File { base, shim, state }) };
    }
    code
}

unsafe extern "C" fn delete<L: Layer>(vfs: *mut ffi::sqlite3_vfs, name: *const c_char, with_directory: c_int) -> c_int {
    // SAFETY: SQLite calls this with the VFS that it was registered for.
    let shim = unsafe { shim_of::<L>(vfs) };
    // SAFETY: SQLite's names end with a zero byte and outlive the call.
    let code = shim.layer.delete(unsafe { path_of(name) });
    if code != ffi::SQLITE_OK {
        return code;
    }
    // SAFETY: a VFS that SQLite found stays valid; the arguments are SQLite's own.
    match unsafe { (*shim.below).xDelete } {
        // SAFETY: as above.
        Some(delete_below) => unsafe { delete_below(shim.below, name, with_directory) },
        None => ffi::SQLITE_IOERR_DELETE,
    }
}

unsafe extern "C" fn close<L: Layer>(file: *mut ffi::sqlite3_file) -> c_int {
    // SAFETY: SQLite calls this with a file that `open` made.
    let code = ask!(unsafe { below_of::<L>(file) }, xClose);
    // SAFETY: SQLite closes a file once and does not use it again.
    unsafe { ptr::drop_in_place(&raw mut (*file.cast::<File<L>>()).state) };
    code
}

unsafe extern "C" fn read<L: Layer>(file: *mut ffi::sqlite3_file, buffer: *mut c_void, bytes: c_int, offset: i64) -> c_int {
    // SAFETY: SQLite calls this with a file that `open` made.
    let (layer, state, mut below) = unsafe { parts::<L>(file) };
    let code = ask!(below.0, xRead, buffer, bytes, offset);
    if code != ffi::SQLITE_OK {
        return code;
    }
    // SAFETY: the read below filled all of the buffer, which SQLite lends for this call.
    let content = unsafe { std::slice::from_raw_parts(buffer.cast::<u8>(), bytes as usize) };
    layer.check(state, &mut below, content, offset as u64)
}

unsafe extern "C" fn write<L: Layer>(file: *mut ffi::sqlite3_file, buffer: *const c_void, bytes: c_int, offset: i64) -> c_int {
    // SAFETY: SQLite calls this with a file that `open` made.
    let (layer, state, mut below) = unsafe { parts::<L>(file) };
    // SAFETY: SQLite lends so many bytes for this call and does not change them meanwhile.
    let content = unsafe { std::slice::from_raw_parts(buffer.cast::<u8>(), bytes as usize) };
    layer.write(state, &mut below, content, offset as u64)
}

unsafe extern "C" fn truncate<L: Layer>(file: *mut ffi::sqlite3_file, bytes: i64) -> c_int {
    // SAFETY: SQLite calls this with a file that `open` made.
    let (layer, state, mut below) = unsafe { parts::<L>(file) };
    layer.truncate(state, &mut below, bytes as u64)
}

unsafe extern "C" fn sync<L: Layer>(file: *mut ffi::sqlite3_file, flags: c_int) -> c_int {
    // SAFETY: SQLite calls this with a file that `open` made.
    let (layer, state, mut below) = unsafe { parts::<L>(file) };
    layer.sync(state, &mut below, flags)
}

unsafe extern "C" fn characteristics<L: Layer>(file: *mut ffi::sqlite3_file) -> c_int {
    // SAFETY: SQLite calls this with a file that `open` made.
    let (layer, _, below) = unsafe { parts::<L>(file) };
    layer.characteristics(ask!(below.0, xDeviceCharacteristics))
}

unsafe extern "C" fn shm_barrier<L: Layer>(file: *mut ffi::sqlite3_file) {
    // SAFETY: SQLite calls this with a file that `open` made.
    let below = unsafe { below_of::<L>(file) };
    // SAFETY: the file below is open, so its methods are set.
    if let Some(method) = unsafe { (*(*below).pMethods).xShmBarrier } {
        // SAFETY: as above.
        unsafe { method(below) }
    }
}

/// No memory-mapped pages: SQLite then reads them.
unsafe extern "C" fn fetch(_: *mut ffi::sqlite3_file, _: i64, _: c_int, page: *mut *mut c_void) -> c_int {
    // SAFETY: SQLite gives a place for the answer.
    unsafe { *page = ptr::null_mut() };
    ffi::SQLITE_OK
}

unsafe extern "C" fn unfetch(_: *mut ffi::sqlite3_file, _: i64, _: *mut c_void) -> c_int {
    ffi::SQLITE_OK
}

/// A method of a file that goes to the file below as it comes.
macro_rules! passed_to_file {
    ($($name:ident = $method:ident ($($given:ident: $type:ty),*);)*) => {$(
        unsafe extern "C" fn $name<L: Layer>(file: *mut ffi::sqlite3_file $(, $given: $type)*) -> c_int {
            // SAFETY: SQLite calls this with a file that `open` made.
            ask!(unsafe { below_of::<L>(file) }, $method $(, $given)*)
        }
    )*};
}

passed_to_file! {
    file_size = xFileSize(bytes: *mut i64);
    lock = xLock(level: c_int);
    unlock = xUnlock(level: c_int);
    check_reserved_lock = xCheckReservedLock(answer: *mut c_int);
    file_control = xFileControl(operation: c_int, argument: *mut c_void);
    sector_size = xSectorSize();
    shm_map = xShmMap(region: c_int, bytes: c_int, extend: c_int, answer: *mut *mut c_void);
    shm_lock = xShmLock(offset: c_int, count: c_int, flags: c_int);
    shm_unmap = xShmUnmap(delete: c_int);
}

/// A function of the VFS that goes to the VFS below as it comes.
macro_rules! passed_to_vfs {
    ($($name:ident = $function:ident ($($given:ident: $type:ty),*) -> $answer:ty, else $missing:expr;)*) => {$(
        unsafe extern "C" fn $name<L: Layer>(vfs: *mut ffi::sqlite3_vfs $(, $given: $type)*) -> $answer {
            // SAFETY: SQLite calls this with the VFS that it was registered for.
            let below = unsafe { shim_of::<L>(vfs) }.below;
            // SAFETY: a VFS that SQLite found stays valid.
            match unsafe { (*below).$function } {
                // SAFETY: as above; the arguments are SQLite's own.
                Some(function) => unsafe { function(below $(, $given)*) },
                None => $missing,
            }
        }
    )*};
}

/// A function of a loaded library, as SQLite writes it.
type Symbol = Option<unsafe extern "C" fn(*mut ffi::sqlite3_vfs, *mut c_void, *const c_char)>;

passed_to_vfs! {
    access = xAccess(name: *const c_char, flags: c_int, answer: *mut c_int) -> c_int, else ffi::SQLITE_IOERR_ACCESS;
    full_pathname = xFullPathname(name: *const c_char, bytes: c_int, answer: *mut c_char) -> c_int, else ffi::SQLITE_CANTOPEN;
    dl_open = xDlOpen(name: *const c_char) -> *mut c_void, else ptr::null_mut();
    dl_error = xDlError(bytes: c_int, answer: *mut c_char) -> (), else ();
    dl_sym = xDlSym(library: *mut c_void, name: *const c_char) -> Symbol, else None;
    dl_close = xDlClose(library: *mut c_void) -> (), else ();
    randomness = xRandomness(bytes: c_int, answer: *mut c_char) -> c_int, else 0;
    sleep = xSleep(microseconds: c_int) -> c_int, else 0;
    current_time = xCurrentTime(answer: *mut f64) -> c_int, else ffi::SQLITE_ERROR;
    last_error = xGetLastError(bytes: c_int, answer: *mut c_char) -> c_int, else 0;
    current_time_int64 = xCurrentTimeInt64(answer: *mut i64) -> c_int, else ffi::SQLITE_ERROR;
}
