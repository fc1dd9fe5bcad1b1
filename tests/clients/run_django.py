"""Django: inspectdb over every schema object it knows, the ORM, server-side cursors; then writes."""

import io
import os

import django
from django.conf import settings

settings.configure(
    DATABASES={"default": {"ENGINE": "django.db.backends.postgresql", "NAME": os.environ["PGDATABASE"], "USER": os.environ["PGUSER"],
                           "PASSWORD": os.environ.get("PGPASSWORD", ""), "HOST": os.environ["PGHOST"], "PORT": os.environ["PGPORT"],
                           "OPTIONS": {"connect_timeout": 20}}},
    INSTALLED_APPS=[], USE_TZ=True, DEFAULT_AUTO_FIELD="django.db.models.BigAutoField")
django.setup()

from django.core.management import call_command  # noqa: E402
from django.db import connection, models, transaction  # noqa: E402
from django.db.utils import Error  # noqa: E402

from transcript import MARK, WRITES, primary, read, refused, wants  # noqa: E402


class Reading(models.Model):
    """A table of the source."""

    id = models.IntegerField(primary_key=True)
    value = models.FloatField()
    remark = models.CharField(max_length=60)

    class Meta:
        managed = False
        db_table = 'survey"."reading'
        app_label = "survey"


class Fresh(models.Model):
    """A table that shall not come to be."""

    class Meta:
        db_table = MARK
        app_label = "survey"


def inspect():
    with connection.cursor() as cursor:
        cursor.execute("SET search_path = survey, public")
    out = io.StringIO()
    call_command("inspectdb", "--include-views", "--include-partitions", stdout=out)
    with connection.cursor() as cursor:
        cursor.execute("RESET search_path")
    return out.getvalue().splitlines()


def raw(sql):
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return [list(row) for row in cursor.fetchall()] if cursor.description else cursor.rowcount


def schema():
    with connection.schema_editor() as editor:
        editor.create_model(Fresh)


def in_atomic():
    got = []
    with transaction.atomic():
        try:
            with transaction.atomic():
                Reading(id=-1, value=1, remark=MARK).save(force_insert=True)
        except Error as error:
            got.append(primary(error))
        got.append(Reading.objects.filter(id__lte=3).count())
    return got


if wants("reads"):
    read("inspectdb", inspect)
    read("orm", lambda: list(Reading.objects.filter(id__lte=5).order_by("id").values_list("id", "remark")))
    read("aggregate", lambda: Reading.objects.aggregate(n=models.Count("*"), top=models.Max("id")))
    read("iterator", lambda: sum(r.id for r in Reading.objects.filter(id__lte=3000).order_by("id").iterator(chunk_size=300)))
    read("explain", lambda: Reading.objects.filter(id=1).explain().split("  ")[0])
    read("features", lambda: connection.pg_version)
if wants("writes"):
    for name, sql, want, guarded in WRITES:
        refused(name, want, lambda s=sql: raw(s), guarded)
    refused("save", "25006", lambda: Reading(id=-1, value=1, remark=MARK).save(force_insert=True))
    refused("bulk create", "25006", lambda: Reading.objects.bulk_create([Reading(id=-n, value=1, remark=MARK) for n in range(3)]))
    refused("update", "25006", lambda: Reading.objects.filter(id=1).update(remark=MARK))
    refused("delete", "25006", lambda: Reading.objects.filter(remark=MARK).delete())
    refused("create model", "25006", schema)
    read("refused in atomic", in_atomic)
    read("after all that", lambda: Reading.objects.filter(id=1).count())
connection.close()
