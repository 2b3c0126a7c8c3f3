//! Container images made of seeded noise: incompressible, the same in every run, of exact layer sizes.

use std::{fs, io::Write, path::Path};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// Content that is known by its digest.
#[derive(Clone, Debug)]
pub struct Blob {
    /// `sha256:` and 64 hex digits.
    pub digest: String,
    pub size: u64,
    pub media_type: &'static str,
    pub bytes: Vec<u8>,
}

impl Blob {
    pub fn new(media_type: &'static str, bytes: Vec<u8>) -> Self {
        Self {
            digest: sha256(&bytes),
            size: bytes.len() as u64,
            media_type,
            bytes,
        }
    }

    fn descriptor(&self) -> Value {
        json!({ "mediaType": self.media_type, "digest": self.digest, "size": self.size })
    }
}

/// An image with everything that a registry needs to serve it.
#[derive(Clone, Debug)]
pub struct Image {
    repository: String,
    tag: String,
    seed: u64,
    layers: Vec<Blob>,
    diff_ids: Vec<String>,
    config: Blob,
    manifest: Blob,
    index: Option<Blob>,
}

impl Image {
    /// An image without layers. Its noise depends on its name, so two images share no layer unless [`Self::seed`] says so.
    pub fn new(repository: &str, tag: &str) -> Self {
        let name_hash = Sha256::digest(format!("{repository}:{tag}"));
        let seed = u64::from(u32::from_le_bytes(
            name_hash[..4].try_into().expect("a digest has 32 bytes"),
        ));
        let (config, manifest) = describe(&[], &[], None);
        let (repository, tag) = (repository.to_owned(), tag.to_owned());
        Self {
            repository,
            tag,
            seed,
            layers: Vec::new(),
            diff_ids: Vec::new(),
            config,
            manifest,
            index: None,
        }
    }

    /// Layers of equal size at the same place are equal for the same seed. Comes before [`Self::layer_bytes`].
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Gives the image layers of exactly these sizes. Those of 4 KiB and more are gzipped tar archives that a runtime can
    /// unpack; smaller ones are raw bytes and good for fetching only.
    pub fn layer_bytes(mut self, sizes: &[usize]) -> Self {
        let (layers, diff_ids): (Vec<Blob>, Vec<String>) = sizes
            .iter()
            .zip(self.seed..)
            .map(|(&size, seed)| layer(size, Noise::new(seed)))
            .unzip();
        (self.config, self.manifest) = describe(&layers, &diff_ids, None);
        (self.layers, self.diff_ids) = (layers, diff_ids);
        self
    }

    /// Adds a layer of programs and what they need, by their paths; the first is what a container runs. Comes after
    /// [`Self::layer_bytes`].
    pub fn running(mut self, files: &[(String, Vec<u8>)]) -> Self {
        let records = files
            .iter()
            .flat_map(|(path, bytes)| tar_record(path, "0000755", bytes));
        let archive: Vec<u8> = records.chain(TAR_END).collect();
        self.layers.push(Blob::new(LAYER, gzip_stored(&archive, 0)));
        self.diff_ids.push(sha256(&archive));
        (self.config, self.manifest) = describe(&self.layers, &self.diff_ids, Some(&files[0].0));
        self
    }

    /// Lets the manifest state these many bytes more for each layer than it has. Comes after [`Self::layer_bytes`].
    pub fn overstate_layers(mut self, by: u64) -> Self {
        let stated: Vec<Blob> = self
            .layers
            .iter()
            .cloned()
            .map(|layer| Blob {
                size: layer.size + by,
                ..layer
            })
            .collect();
        (self.config, self.manifest) = describe(&stated, &[], None);
        self
    }

    /// Wraps the manifest in an index, as images for several platforms are. Comes after [`Self::layer_bytes`].
    pub fn in_index(mut self) -> Self {
        let mut entry = self.manifest.descriptor();
        entry["platform"] = json!({ "architecture": architecture(), "os": "linux" });
        self.index = Some(Blob::new(INDEX, index_json(&entry)));
        self
    }

    pub fn repository(&self) -> &str {
        &self.repository
    }

    pub fn tag(&self) -> &str {
        &self.tag
    }

    /// `<host>/<repository>:<tag>`
    pub fn reference(&self, host: &str) -> String {
        format!("{host}/{}:{}", self.repository, self.tag)
    }

    /// What the tag points to: the index if there is one, else the manifest.
    pub fn digest(&self) -> &str {
        &self.top().digest
    }

    pub fn layers(&self) -> &[Blob] {
        &self.layers
    }

    /// The config and the layers.
    pub fn blobs(&self) -> impl Iterator<Item = &Blob> {
        [&self.config].into_iter().chain(&self.layers)
    }

    /// The manifest and, last, the index if there is one.
    pub fn manifests(&self) -> impl Iterator<Item = &Blob> {
        [&self.manifest].into_iter().chain(&self.index)
    }

    /// Of the config and the layers, without manifests.
    pub fn total_bytes(&self) -> u64 {
        self.blobs().map(|blob| blob.size).sum()
    }

    /// Writes an OCI image layout as one archive, which containerd imports under the image's full name.
    pub fn save_archive(&self, host: &str, file: &Path) {
        let files = self.oci_layout(json!({ "io.containerd.image.name": self.reference(host) }));
        let records = files
            .iter()
            .flat_map(|(path, bytes)| tar_record(path, "0000644", bytes));
        fs::write(file, records.chain(TAR_END).collect::<Vec<u8>>()).expect("writing an archive");
    }

    /// The files of a layout; `annotations` tell the image's name.
    fn oci_layout(&self, annotations: Value) -> Vec<(String, Vec<u8>)> {
        let mut entry = self.top().descriptor();
        entry["annotations"] = annotations;
        let hex = |blob: &Blob| {
            blob.digest
                .strip_prefix("sha256:")
                .expect("our digests are SHA-256")
                .to_owned()
        };
        let blobs = self.blobs().chain(self.manifests());
        let blobs = blobs.map(|blob| (format!("blobs/sha256/{}", hex(blob)), blob.bytes.clone()));
        let version = br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec();
        let fixed = [
            ("oci-layout".to_owned(), version),
            ("index.json".to_owned(), index_json(&entry)),
        ];
        fixed.into_iter().chain(blobs).collect()
    }

    fn top(&self) -> &Blob {
        self.index.as_ref().unwrap_or(&self.manifest)
    }
}

/// `sha256:` and the lower-case hex of the hash.
pub fn sha256(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// Config and manifest over layers whose uncompressed digests are `diff_ids`.
fn describe(layers: &[Blob], diff_ids: &[String], program: Option<&str>) -> (Blob, Blob) {
    let rootfs = json!({ "type": "layers", "diff_ids": diff_ids });
    let runs = program.map_or(json!({}), |program| json!({ "Entrypoint": [program] }));
    let config = json!({ "architecture": architecture(), "os": "linux", "config": runs, "rootfs": rootfs });
    let config = Blob::new(CONFIG, config.to_string().into_bytes());
    let layers: Vec<Value> = layers.iter().map(Blob::descriptor).collect();
    let manifest =
        json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": config.descriptor(), "layers": layers });
    let manifest = Blob::new(MANIFEST, manifest.to_string().into_bytes());
    (config, manifest)
}

fn index_json(entry: &Value) -> Vec<u8> {
    json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [entry] })
        .to_string()
        .into_bytes()
}

/// As images name this machine's.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// A layer of exactly `size` bytes, and the digest of what it unpacks to.
fn layer(size: usize, mut noise: Noise) -> (Blob, String) {
    if size < UNPACKABLE_BYTES_MIN {
        let bytes = noise.take(size);
        let diff_id = sha256(&bytes);
        return (Blob::new(LAYER, bytes), diff_id);
    }
    // The largest archive whose stored form still fits; padding in the gzip header fills the rest.
    let mut file_bytes = (size - TAR_OVERHEAD) / TAR_RECORD * TAR_RECORD;
    while gzip_stored_bytes(TAR_OVERHEAD + file_bytes) > size {
        file_bytes -= TAR_RECORD;
    }
    let archive = tar("payload", &noise.take(file_bytes));
    let padding = size - gzip_stored_bytes(archive.len());
    (Blob::new(LAYER, gzip_stored(&archive, padding)), sha256(&archive))
}

/// A tar archive of one file, whose size is a multiple of the record size.
fn tar(name: &str, content: &[u8]) -> Vec<u8> {
    [tar_record(name, "0000644", content), TAR_END.to_vec()].concat()
}

/// One file of a tar archive, with its header.
fn tar_record(name: &str, mode: &str, content: &[u8]) -> Vec<u8> {
    let mut header = [0; TAR_RECORD];
    let mut field = |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
    field(0, name.trim_start_matches('/'));
    field(100, mode);
    field(108, "0000000");
    field(116, "0000000");
    field(124, &format!("{:011o}", content.len()));
    field(136, "00000000000");
    // The checksum is computed with its own field full of spaces.
    field(148, "        ");
    field(156, "0");
    field(257, "ustar\x0000");
    let checksum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
    header[148..156].copy_from_slice(format!("{checksum:06o}\0 ").as_bytes());
    let padding = vec![0; content.len().next_multiple_of(TAR_RECORD) - content.len()];
    [&header[..], content, &padding].concat()
}

/// A gzip file (RFC 1952) of stored blocks (RFC 1951, 3.2.4): compressing noise would cost seconds and gain nothing.
/// `padding` bytes are hidden in the header's name and comment, of which Go's reader accepts 511 characters each.
fn gzip_stored(content: &[u8], padding: usize) -> Vec<u8> {
    let (name, comment) = (padding.min(300), padding.saturating_sub(300));
    let flags = u8::from(name > 0) << 3 | u8::from(comment > 0) << 4;
    let mut file = Vec::with_capacity(gzip_stored_bytes(content.len()) + padding);
    file.extend([0x1f, 0x8b, 8, flags, 0, 0, 0, 0, 0, 255]);
    for text in [name, comment].into_iter().filter(|&length| length > 0) {
        file.resize(file.len() + text - 1, b'-');
        file.push(0);
    }
    let mut blocks = content.chunks(STORED_BLOCK_MAX).peekable();
    while let Some(block) = blocks.next() {
        let length = u16::try_from(block.len()).expect("a stored block has at most 65535 bytes");
        file.push(u8::from(blocks.peek().is_none()));
        file.extend(length.to_le_bytes());
        file.extend((!length).to_le_bytes());
        file.write_all(block).expect("writing to memory");
    }
    file.extend(crc32fast::hash(content).to_le_bytes());
    file.extend(
        u32::try_from(content.len())
            .expect("test layers are below 4 GiB")
            .to_le_bytes(),
    );
    file
}

/// The size of [`gzip_stored`] without padding: header and trailer, and five bytes a block.
fn gzip_stored_bytes(content: usize) -> usize {
    18 + content + 5 * content.div_ceil(STORED_BLOCK_MAX)
}

/// A xorshift generator of bytes that do not compress.
struct Noise(u64);

impl Noise {
    fn new(seed: u64) -> Self {
        // Spreads neighbouring seeds apart; the state must not be 0.
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn take(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(count + 8);
        while bytes.len() < count {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            bytes.extend_from_slice(&self.0.to_le_bytes());
        }
        bytes.truncate(count);
        bytes
    }
}

pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

const UNPACKABLE_BYTES_MIN: usize = 4096;
const TAR_RECORD: usize = 512;
const TAR_END: [u8; 2 * TAR_RECORD] = [0; 2 * TAR_RECORD];
/// One header and the two empty records that end an archive.
const TAR_OVERHEAD: usize = 3 * TAR_RECORD;
const STORED_BLOCK_MAX: usize = 65_535;
