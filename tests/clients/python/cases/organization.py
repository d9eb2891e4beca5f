"""The administration: projects, service accounts, API keys, rate limits, and the audit log."""

import openai

from cases.common import Case, client

organization = client.admin.organization
projects = organization.projects


def with_key(key):
    """Returns a client with another key. It is not the recorded one: the contract does not have rejected keys."""
    return openai.OpenAI(max_retries=0, api_key=key, admin_api_key=key)


class OrganizationTest(Case):
    def test_a_project_has_its_own_keys_and_objects_until_it_is_archived(self):
        project = projects.create(name="Team A", external_key_id="x")

        self.assertEqual((project.status, project.name, project.external_key_id), ("active", "Team A", "x"))
        self.assertEqual(projects.retrieve(project.id), project)
        self.assertEqual(projects.update(project.id, name="Team B").name, "Team B")

        account = projects.service_accounts.create(project.id, name="app")
        team = with_key(account.api_key.value)
        assistant = team.beta.assistants.create(model="words")

        self.assertEqual([listed.id for listed in team.beta.assistants.list()], [assistant.id])
        self.assert_rejected(
            openai.NotFoundError,
            f"No assistant found with id '{assistant.id}'.",
            client.beta.assistants.retrieve,
            assistant.id,
        )

        archived = projects.archive(project.id)

        self.assertEqual((archived.status, archived.archived_at is None), ("archived", False))
        self.assertRaises(openai.AuthenticationError, team.beta.assistants.list)
        self.assertNotIn(project.id, [listed.id for listed in projects.list(limit=100)])
        self.assertIn(project.id, [listed.id for listed in projects.list(limit=100, include_archived=True)])
        self.assert_rejected(
            openai.BadRequestError, "Project Team B is archived", projects.update, project.id, name="Team C"
        )

    def test_service_accounts_and_their_keys(self):
        project = projects.create(name="keys").id
        accounts = projects.service_accounts
        created = [accounts.create(project, name=f"account {number}") for number in range(5)]

        listed = [account.id for account in accounts.list(project, limit=2)]
        keys = [key.id for key in projects.api_keys.list(project, limit=2, owner_project_access="active")]

        self.assertEqual(listed, [account.id for account in created[::-1]])
        self.assertEqual(keys, [account.api_key.id for account in created[::-1]])

        account = created[0]
        key = projects.api_keys.retrieve(account.api_key.id, project_id=project)
        self.assertEqual((key.owner.type, key.owner.service_account.id), ("service_account", account.id))
        self.assertNotIn(account.api_key.value, key.to_json())
        self.assert_rejected(
            openai.BadRequestError,
            "API keys cannot be deleted for the service account, please delete the service account",
            projects.api_keys.delete,
            key.id,
            project_id=project,
        )

        second = accounts.api_keys.create(account.id, project_id=project, name="second", expires_in_seconds=60)
        changed = accounts.update(account.id, project_id=project, role="owner")
        self.assertEqual((second.name, changed.role), ("second", "owner"))
        self.assertEqual(accounts.retrieve(account.id, project_id=project), changed)
        with_key(second.value).beta.assistants.list()

        self.assertTrue(accounts.delete(account.id, project_id=project).deleted)

        self.assertRaises(openai.AuthenticationError, with_key(second.value).beta.assistants.list)
        self.assert_rejected(
            openai.NotFoundError,
            f"No service account found with id '{account.id}'.",
            accounts.retrieve,
            account.id,
            project_id=project,
        )

    def test_rate_limits(self):
        project = projects.create(name="limits").id
        (limit,) = projects.rate_limits.list_rate_limits(project)

        changed = projects.rate_limits.update_rate_limit(limit.id, project_id=project, max_requests_per_1_minute=500)

        self.assertEqual((limit.id, limit.model, changed.max_requests_per_1_minute), ("rl_all", "*", 500))
        self.assertEqual(list(projects.rate_limits.list_rate_limits(project)), [changed])
        self.assert_rejected(
            openai.BadRequestError,
            "Invalid 'max_requests_per_1_day': this limit is not supported.",
            projects.rate_limits.update_rate_limit,
            limit.id,
            project_id=project,
            max_requests_per_1_day=5,
            param="max_requests_per_1_day",
            code="unsupported_parameter",
        )

    def test_admin_keys_and_the_audit_log(self):
        keys = organization.admin_api_keys
        created = [keys.create(name=f"key {number}", expires_in_seconds=3600) for number in range(3)]
        ids = [key.id for key in created]

        self.assertEqual([key.id for key in keys.list(limit=2) if key.id in ids], ids)
        self.assertEqual([key.id for key in keys.list(limit=2, order="desc") if key.id in ids], ids[::-1])
        self.assertEqual(keys.retrieve(ids[0]).redacted_value, created[0].redacted_value)

        administrator = with_key(created[0].value).admin.organization
        project = administrator.projects.create(name="audited")
        administrator.projects.update(project.id, name="renamed")
        for key in created:
            self.assertTrue(keys.delete(key.id).deleted)
        self.assertRaises(openai.AuthenticationError, administrator.projects.list)

        logs = list(organization.audit_logs.list(project_ids=[project.id], limit=1))
        self.assertEqual([log.type for log in logs], ["project.updated", "project.created"])
        self.assertEqual({log.actor.api_key.id for log in logs}, {ids[0]})
        self.assertEqual((logs[0].project.name, logs[1].project_created.data.title), ("renamed", "audited"))
        deleted = organization.audit_logs.list(resource_ids=ids, event_types=["api_key.deleted"])
        self.assertEqual({log.api_key_deleted.id for log in deleted}, set(ids))
        later = organization.audit_logs.list(project_ids=[project.id], effective_at={"gt": logs[0].effective_at + 60})
        self.assertEqual(list(later), [])
