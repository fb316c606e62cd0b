# The service on a CPU: no compiler, no CUDA, no root in the image that runs.
#
#   docker build --build-arg TORCH_INDEX=ADDRESS -t geoloc-fast .
#
# ADDRESS is that of PyTorch's CPU-only wheels, as its "Get started" page names it: with the default one the image is
# 5 GB larger for GPU libraries that are never loaded.
FROM python:3.12-slim AS build
ARG TORCH_INDEX=
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/geoloc
RUN /opt/geoloc/bin/pip install --no-cache-dir ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch torchvision
COPY CMakeLists.txt LICENSE NOTICE README.md pyproject.toml /src/
COPY csrc /src/csrc
COPY geoloc_fast /src/geoloc_fast
RUN /opt/geoloc/bin/pip install --no-cache-dir -C cmake.define.GEOLOC_FAST_CUDA=OFF "/src[serve]"

FROM python:3.12-slim
# A volume begins with the owner of the folder that it is mounted on.
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin geoloc && install -d -o geoloc /data /cases
COPY --from=build /opt/geoloc /opt/geoloc
ENV PATH=/opt/geoloc/bin:$PATH PYTHONDONTWRITEBYTECODE=1 GEOLOC_FAST_REQUIRE=cpu
USER 10001
EXPOSE 8000
VOLUME ["/data", "/cases"]
HEALTHCHECK --interval=30s --timeout=5s --start-period=30s \
  CMD ["python", "-c", "import urllib.request as r; r.urlopen(r.Request('http://127.0.0.1:8000/healthz', headers={'Host': 'localhost'}), timeout=4)"]
ENTRYPOINT ["geoloc-fast"]
CMD ["serve", "--index", "/data/region.index", "--cases", "/cases", "--host", "0.0.0.0", "--name", "localhost", "--name", "127.0.0.1"]
