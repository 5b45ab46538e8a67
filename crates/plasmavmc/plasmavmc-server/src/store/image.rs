//! Images in the store. Their bytes are in [`crate::images`].

use chainfire_client::{Compare, Op, Txn};
use hearth_types::{ImageId, Name};

use super::records::{ImageRecord, Record, VmRecord};
use super::requests::Along;
use super::vm::is_unknown;
use super::{Store, StoreError, Stored, decode, encode, keys, unchanged, while_doing};

/// The holder of an image's name.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
struct ImageNameRecord {
    version: u32,
    image: ImageId,
}

impl Record for ImageNameRecord {
    fn version(&self) -> u32 {
        self.version
    }
}

impl Store {
    /// All images, by name.
    pub(crate) async fn images(&self) -> Result<Vec<Stored<ImageRecord>>, StoreError> {
        let listing = self
            .client()
            .list(keys::IMAGES)
            .await
            .map_err(while_doing("listing images"))?;
        let mut images = listing
            .kvs
            .iter()
            .map(decode::<ImageRecord>)
            .collect::<Result<Vec<_>, StoreError>>()?;
        images.sort_by(|a, b| a.value.name.cmp(&b.value.name));
        Ok(images)
    }

    /// The image of that name.
    pub(crate) async fn image_by_name(&self, name: &Name) -> Result<Option<Stored<ImageRecord>>, StoreError> {
        match self.get::<ImageNameRecord>(&keys::image_name(name)).await? {
            Some(holder) => self.get(&keys::image(holder.value.image)).await,
            None => Ok(None),
        }
    }

    /// Registers an image under its name. False when the name is taken.
    pub(crate) async fn create_image(&self, image: &ImageRecord, along: Along) -> Result<bool, StoreError> {
        let (key, name_key) = (keys::image(image.id), keys::image_name(&image.name));
        let holder = ImageNameRecord {
            version: image.version,
            image: image.id,
        };
        let txn = Txn::new()
            .when([Compare::absent(&name_key), Compare::absent(&key)])
            .when(along.guards)
            .then([encode(&key, image)?, encode(&name_key, &holder)?])
            .then(along.writes);
        match self.txn("registering an image", txn).await {
            Ok(outcome) => Ok(outcome.succeeded),
            Err(error) if is_unknown(&error) => {
                let found: Option<Stored<ImageRecord>> = self.get(&key).await?;
                found.map_or(Err(error), |_| Ok(true))
            }
            Err(error) => Err(error),
        }
    }

    /// Marks an image as being deleted, or takes the mark away. From the mark on no VM can be made from it, because
    /// every creation compares the image's revision. `None` when it has changed meanwhile.
    pub(crate) async fn mark_image(
        &self,
        image: &Stored<ImageRecord>,
        deleting: bool,
    ) -> Result<Option<Stored<ImageRecord>>, StoreError> {
        let record = ImageRecord {
            deleting,
            ..image.value.clone()
        };
        let key = keys::image(record.id);
        let txn = Txn::new()
            .when([unchanged(&key, image.revision)])
            .then([encode(&key, &record)?]);
        let outcome = self.txn("marking an image", txn).await?;
        Ok(outcome.succeeded.then_some(Stored {
            value: record,
            revision: outcome.revision,
        }))
    }

    /// Removes an image that is marked. False when it has changed meanwhile.
    pub(crate) async fn remove_image(
        &self,
        image: &Stored<ImageRecord>,
        along: Along,
    ) -> Result<bool, StoreError> {
        let key = keys::image(image.value.id);
        let txn = Txn::new()
            .when([unchanged(&key, image.revision)])
            .when(along.guards)
            .then([Op::delete(&key), Op::delete(keys::image_name(&image.value.name))])
            .then(along.writes);
        Ok(self.txn("removing an image", txn).await?.succeeded)
    }

    /// A VM that was made from the image, if there is one.
    pub(crate) async fn user_of_image(&self, image: ImageId) -> Result<Option<VmRecord>, StoreError> {
        let listing = self
            .client()
            .list(keys::VMS)
            .await
            .map_err(while_doing("listing VMs"))?;
        for kv in &listing.kvs {
            let vm: Stored<VmRecord> = decode(kv)?;
            if vm.value.image.id == image {
                return Ok(Some(vm.value));
            }
        }
        Ok(None)
    }
}
