# docker build -t onecard .                                for NVIDIA cards
# docker build -t onecard:cpu --build-arg DEVICE=cpu .     without
FROM python:3.12-slim

ARG DEVICE=cuda
ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1

# Triton compiles its launchers with a C compiler when a kernel first runs.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends gcc libc6-dev \
 && rm -rf /var/lib/apt/lists/*

# Torch goes first, in a layer of its own: it is the largest, and changes least.
RUN if [ "$DEVICE" = cpu ]; \
    then pip install torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu; \
    else pip install "torch>=2.11"; fi

WORKDIR /app
COPY pyproject.toml README.md LICENSE ./
COPY onecard onecard
COPY configs configs
RUN if [ "$DEVICE" = cpu ]; then pip install .; else pip install ".[cuda]"; fi

# Weights, from whatever source, and compiled kernels outlive the container in one volume.
RUN useradd --create-home onecard && mkdir /cache && chown onecard /cache
USER onecard
ENV ONECARD_CACHE=/cache/onecard HF_HOME=/cache/huggingface TRITON_CACHE_DIR=/cache/triton
VOLUME /cache

EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=10m --retries=3 \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health/ready', timeout=4)"]
ENTRYPOINT ["onecard"]
CMD ["serve", "configs/demo.yaml", "--host", "0.0.0.0", "--port", "8000"]
