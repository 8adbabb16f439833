// What Bio-Formats, the reader inside QuPath, sees in each file: facts as "key<TAB>value" lines, decoded pixels as raw files.
//
//     java -cp bioformats_package.jar Check.java OUT FILE...
//
// writes OUT/<n>.facts and, for every resolution r of the first series, OUT/<n>.<r>.rgb (8-bit, the channels interleaved).

import java.io.IOException;
import java.io.PrintWriter;
import java.io.StringReader;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import javax.xml.XMLConstants;
import javax.xml.transform.stream.StreamSource;
import javax.xml.validation.SchemaFactory;
import loci.common.DebugTools;
import loci.common.services.ServiceFactory;
import loci.formats.FormatTools;
import loci.formats.ImageReader;
import loci.formats.ome.OMEXMLMetadata;
import loci.formats.services.OMEXMLService;
import ome.units.UNITS;
import org.xml.sax.SAXException;

public class Check {
  static final long MOST_BYTES = 64L << 20;

  public static void main(String[] args) throws Exception {
    DebugTools.setRootLevel("OFF");
    ImageReader reader = new ImageReader();
    reader.setFlattenedResolutions(false);
    for (int n = 1; n < args.length; n++) {
      try (PrintWriter facts = new PrintWriter(args[0] + "/" + (n - 1) + ".facts", StandardCharsets.UTF_8)) {
        try {
          check(reader, args[n], facts, args[0] + "/" + (n - 1) + ".");
        } catch (Throwable problem) {
          put(facts, "error", problem);
        } finally {
          reader.close();
        }
      }
    }
  }

  static void check(ImageReader reader, String file, PrintWriter facts, String out) throws Exception {
    OMEXMLService service = new ServiceFactory().getInstance(OMEXMLService.class);
    OMEXMLMetadata meta = service.createOMEXMLMetadata();
    reader.setMetadataStore(meta);
    reader.setId(file);
    put(facts, "format", reader.getFormat());
    put(facts, "series", reader.getSeriesCount());
    put(facts, "resolutions", reader.getResolutionCount());
    put(facts, "rgb_channels", reader.getRGBChannelCount());
    put(facts, "channels", reader.getEffectiveSizeC());
    put(facts, "images", reader.getImageCount());
    for (int c = 0; c < meta.getChannelCount(0); c++) {
      var colour = meta.getChannelColor(0, c);
      put(facts, "channel" + c, meta.getChannelName(0, c) + " " + (colour == null ? null : colour.getValue()));
    }
    put(facts, "interleaved", reader.isInterleaved());
    put(facts, "type", FormatTools.getPixelTypeString(reader.getPixelType()));
    put(facts, "name", meta.getImageName(0));
    put(facts, "mpp_x", meta.getPixelsPhysicalSizeX(0) == null ? null : meta.getPixelsPhysicalSizeX(0).value(UNITS.MICROMETER));
    put(facts, "mpp_y", meta.getPixelsPhysicalSizeY(0) == null ? null : meta.getPixelsPhysicalSizeY(0).value(UNITS.MICROMETER));
    put(facts, "unit", meta.getPixelsPhysicalSizeX(0) == null ? null : meta.getPixelsPhysicalSizeX(0).unit().getSymbol());
    put(facts, "magnification", magnification(meta));
    put(facts, "rois", meta.getROICount());
    for (int i = 0; i < meta.getROICount(); i++) {
      put(facts, "roi" + i, meta.getRectangleText(i, 0) + " " + meta.getRectangleX(i, 0) + " " + meta.getRectangleY(i, 0)
          + " " + meta.getRectangleWidth(i, 0) + " " + meta.getRectangleHeight(i, 0));
    }
    for (int i = 0; i < meta.getMapAnnotationCount(); i++) {
      for (var pair : meta.getMapAnnotationValue(i)) put(facts, "map:" + pair.getName(), pair.getValue());
    }
    for (int i = 0; i < meta.getCommentAnnotationCount(); i++) put(facts, "comment", meta.getCommentAnnotationValue(i));
    String xml = new loci.formats.tiff.TiffParser(file).getComment();
    put(facts, "schema_errors", schemaErrors(xml));
    for (int r = 0; r < reader.getResolutionCount(); r++) {
      reader.setResolution(r);
      put(facts, "size" + r, reader.getSizeY() + " " + reader.getSizeX());
      put(facts, "tile" + r, reader.getOptimalTileHeight() + " " + reader.getOptimalTileWidth());
      if (3L * reader.getSizeX() * reader.getSizeY() <= MOST_BYTES) {
        byte[] pixels = reader.openBytes(0);
        int count = reader.getImageCount();
        if (count > 1) {
          int n = pixels.length;
          pixels = java.util.Arrays.copyOf(pixels, n * count);
          for (int i = 1; i < count; i++) System.arraycopy(reader.openBytes(i), 0, pixels, i * n, n);
        }
        int channels = count * reader.getRGBChannelCount();
        Files.write(Path.of(out + r + ".rgb"), reader.isInterleaved() ? pixels : interleave(pixels, channels));
      }
    }
  }

  // Bio-Formats' own validation forgives elements in the wrong order; the schema, which travels in the jar, does not.
  static String schemaErrors(String xml) throws Exception {
    var factory = SchemaFactory.newInstance(XMLConstants.W3C_XML_SCHEMA_NS_URI);
    String text;
    try (var file = Check.class.getResourceAsStream("/released-schema/2016-06/ome.xsd")) {
      text = new String(file.readAllBytes(), StandardCharsets.UTF_8);
    }
    // The one schema that it imports lies on the network, and nothing in it is used.
    text = text.replaceFirst("<xsd:import [^>]*/>", "");
    var schema = factory.newSchema(new StreamSource(new StringReader(text)));
    try {
      schema.newValidator().validate(new StreamSource(new StringReader(xml)));
      return "none";
    } catch (SAXException problem) {
      return problem.getMessage();
    }
  }

  static Object magnification(OMEXMLMetadata meta) {
    String wanted = meta.getObjectiveSettingsID(0);
    for (int i = 0; i < meta.getInstrumentCount(); i++) {
      for (int o = 0; o < meta.getObjectiveCount(i); o++) {
        if (meta.getObjectiveID(i, o).equals(wanted)) return meta.getObjectiveNominalMagnification(i, o);
      }
    }
    return null;
  }

  static byte[] interleave(byte[] planes, int channels) {
    byte[] pixels = new byte[planes.length];
    int n = planes.length / channels;
    for (int c = 0; c < channels; c++) for (int i = 0; i < n; i++) pixels[i * channels + c] = planes[c * n + i];
    return pixels;
  }

  static void put(PrintWriter facts, String key, Object value) throws IOException {
    facts.println(key + "\t" + String.valueOf(value).replace("\n", " "));
  }
}
