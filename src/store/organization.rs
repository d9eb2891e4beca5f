//! The organization: projects, service accounts, API keys, limits, and the audit log.
//!
//! Each change and its entry in the audit log are one transaction, which also increments the access revision. The row lock
//! of the revision serializes all changes.

use async_trait::async_trait;

use super::Error;
use crate::api::organization::api_key::{KeyHolder, OwnerAccess};
use crate::api::organization::audit_log::AuditLogFilter;
use crate::api::organization::project::ModifyProject;
use crate::api::organization::rate_limit::ModifyRateLimit;
use crate::api::organization::service_account::ModifyServiceAccount;
use crate::api::organization::{
    ApiKey, AuditLog, Change, NewKey, Project, ProjectApiKey, ProjectLimits, ServiceAccount,
};
use crate::api::{ApiKeyId, Page, PageQuery, ProjectId, ServiceAccountId};

/// A key to store.
#[derive(Debug, Clone, Copy)]
pub struct NewApiKey<'a> {
    /// The key itself, of which the digest is stored.
    pub secret: &'a NewKey,
    /// What is stored besides.
    pub key: &'a ApiKey,
    /// What the key may use.
    pub holder: &'a KeyHolder,
}

/// Projects and their limits.
#[async_trait]
pub trait Projects {
    /// Stores a new project.
    async fn create_project(&self, project: &Project, change: &Change) -> Result<(), Error>;
    /// Returns a project.
    async fn project(&self, id: &ProjectId) -> Result<Option<Project>, Error>;
    /// Returns a page of the active projects, or of all.
    async fn list_projects(&self, include_archived: bool, query: &PageQuery) -> Result<Page<Project>, Error>;
    /// Modifies a project. Concurrent changes all take effect.
    ///
    /// # Errors
    /// [`Error::NoProject`], [`Error::ProjectArchived`].
    async fn modify_project(&self, id: &ProjectId, request: &ModifyProject, change: &Change) -> Result<Project, Error>;
    /// Archives a project, unless it already is.
    ///
    /// # Errors
    /// [`Error::NoProject`].
    async fn archive_project(&self, id: &ProjectId, change: &Change) -> Result<Project, Error>;
    /// Modifies the limits of a project. Concurrent changes all take effect.
    ///
    /// # Errors
    /// [`Error::NoProject`], [`Error::ProjectArchived`].
    async fn modify_limits(
        &self,
        project: &ProjectId,
        request: &ModifyRateLimit,
        change: &Change,
    ) -> Result<ProjectLimits, Error>;
}

/// Service accounts of projects.
#[async_trait]
pub trait ServiceAccounts {
    /// Stores a new service account of a project, and its key, if any.
    ///
    /// # Errors
    /// [`Error::NoProject`], [`Error::ProjectArchived`].
    async fn create_service_account(
        &self,
        project: &ProjectId,
        account: &ServiceAccount,
        key: Option<&NewApiKey<'_>>,
        change: &Change,
    ) -> Result<(), Error>;
    /// Returns a service account of a project.
    async fn service_account(
        &self,
        project: &ProjectId,
        id: &ServiceAccountId,
    ) -> Result<Option<ServiceAccount>, Error>;
    /// Returns a page of a project's service accounts.
    async fn list_service_accounts(
        &self,
        project: &ProjectId,
        query: &PageQuery,
    ) -> Result<Page<ServiceAccount>, Error>;
    /// Modifies a service account. Concurrent changes all take effect.
    ///
    /// # Errors
    /// [`Error::NoProject`], [`Error::ProjectArchived`].
    async fn modify_service_account(
        &self,
        project: &ProjectId,
        id: &ServiceAccountId,
        request: &ModifyServiceAccount,
        change: &Change,
    ) -> Result<Option<ServiceAccount>, Error>;
    /// Deletes a service account and its keys. Returns whether it existed.
    ///
    /// # Errors
    /// [`Error::NoProject`], [`Error::ProjectArchived`].
    async fn delete_service_account(
        &self,
        project: &ProjectId,
        id: &ServiceAccountId,
        change: &Change,
    ) -> Result<bool, Error>;
}

/// API keys of projects and of the administration.
#[async_trait]
pub trait ApiKeys {
    /// Stores a new key.
    ///
    /// # Errors
    /// [`Error::NoProject`], [`Error::ProjectArchived`], [`Error::NoServiceAccount`].
    async fn create_key(&self, new: &NewApiKey<'_>, change: &Change) -> Result<(), Error>;
    /// Returns a key of a project.
    async fn project_key(&self, project: &ProjectId, id: &ApiKeyId) -> Result<Option<ProjectApiKey>, Error>;
    /// Returns a page of a project's keys, or only of those whose owners have this access.
    async fn list_project_keys(
        &self,
        project: &ProjectId,
        access: Option<OwnerAccess>,
        query: &PageQuery,
    ) -> Result<Page<ProjectApiKey>, Error>;
    /// Deletes a key of a project. Returns whether it existed.
    ///
    /// # Errors
    /// [`Error::KeyOfServiceAccount`].
    async fn delete_project_key(&self, project: &ProjectId, id: &ApiKeyId, change: &Change) -> Result<bool, Error>;
    /// Returns a key of the administration.
    async fn admin_key(&self, id: &ApiKeyId) -> Result<Option<ApiKey>, Error>;
    /// Returns a page of the administration's keys.
    async fn list_admin_keys(&self, query: &PageQuery) -> Result<Page<ApiKey>, Error>;
    /// Deletes a key of the administration. Returns whether it existed.
    async fn delete_admin_key(&self, id: &ApiKeyId, change: &Change) -> Result<bool, Error>;
    /// Deletes a key of any holder, even of a service account. Returns whether it existed.
    async fn revoke_key(&self, id: &ApiKeyId, change: &Change) -> Result<bool, Error>;
}

/// The audit log.
#[async_trait]
pub trait AuditLogs {
    /// Returns a page of the entries that match a filter.
    async fn list_audit_logs(&self, filter: &AuditLogFilter, query: &PageQuery) -> Result<Page<AuditLog>, Error>;
}

/// What the administration may call.
pub trait Organization: Projects + ServiceAccounts + ApiKeys + AuditLogs {}

impl<T: Projects + ServiceAccounts + ApiKeys + AuditLogs> Organization for T {}
