# uid-serve on a CPU. docs/serving.md says how it is built and run.
FROM python:3.13-slim-trixie AS build
ARG EXTRAS=serve
COPY . /source
RUN python -m venv --without-pip /opt/uid \
    && pip --python /opt/uid/bin/python install --no-cache-dir "/source[${EXTRAS}]"

FROM python:3.13-slim-trixie
RUN useradd --uid 10001 --no-create-home --home-dir /cache --shell /usr/sbin/nologin uid \
    && install --directory --owner=uid --mode=700 /cache
COPY --from=build /opt/uid /opt/uid
# The one folder that is written to: optimised graphs, and copies of a bundle's files while they are loaded.
ENV PATH=/opt/uid/bin:$PATH XDG_CACHE_HOME=/cache TMPDIR=/cache PYTHONDONTWRITEBYTECODE=1
VOLUME /cache
WORKDIR /cache
USER 10001
EXPOSE 7000
HEALTHCHECK --start-period=60s --timeout=5s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:7000/healthz', timeout=4)"]
# Beyond this machine it wants a token: $UID_SERVE_TOKEN.
ENTRYPOINT ["uid-serve", "--host", "0.0.0.0"]
